#!/bin/sh
# Entry point of a container. FLEET_TOKEN_FILE: file with the token of master and workers; the master creates it if none
# is given. CALIBRATE=1: a worker calibrates its machine once. TARGET: set and empty if the server is the container named
# server. WEB_PORT: port of the web UI to print. ARGS: additional options for the command.
set -eu

case " $* " in
  *" --master "* | *" --worker "*)
    if ! [ -w results ]; then
      echo "error: ./results belongs to user $(stat -c %u:%g results), and user $(id -u):$(id -g) cannot write to it:" \
        "set RUN_AS=$(stat -c %u:%g results) (your own: RUN_AS=\$(id -u):\$(id -g))" >&2
      exit 2
    fi ;;
esac

if [ -n "${FLEET_TOKEN_FILE:-}" ] && [ -z "${ASR_LOAD_FLEET_TOKEN:-}" ]; then
  case " $* " in
    *" --master "*)
      if [ ! -s "$FLEET_TOKEN_FILE" ]; then
        (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$FLEET_TOKEN_FILE.new")
        mv "$FLEET_TOKEN_FILE.new" "$FLEET_TOKEN_FILE"
      fi ;;
  esac
  tries=10 # a worker may start before its master
  until [ -s "$FLEET_TOKEN_FILE" ] || [ $tries = 0 ]; do
    sleep 1
    tries=$((tries - 1))
  done
  if [ ! -s "$FLEET_TOKEN_FILE" ]; then
    echo "error: the fleet token is missing: set ASR_LOAD_FLEET_TOKEN to the same value as on the master's machine" >&2
    exit 2
  fi
  ASR_LOAD_FLEET_TOKEN=$(cat "$FLEET_TOKEN_FILE")
  export ASR_LOAD_FLEET_TOKEN
fi

if [ "${CALIBRATE:-0}" = 1 ] && [ -w "${XDG_CACHE_HOME:-}" ]; then
  # Workers on one machine share its cache. Calibrating at the same time, they would disturb each other.
  exec 9>"$XDG_CACHE_HOME/calibration.lock"
  flock 9
  if [ ! -e "$XDG_CACHE_HOME/asr-load/calibration-$(hostname).json" ]; then
    echo "calibrating this machine once, in about two minutes (CALIBRATE=0 skips this)" >&2
    asr-load calibrate >&2 || echo "not calibrated: verdicts use only lags and CPU" >&2
  fi
  exec 9>&-
fi

case " $* " in
  *" --master "*)
    if [ "${TARGET-given}" = "" ]; then
      tries=10 # the server's container may start a moment later
      until getent hosts server >/dev/null || [ $tries = 0 ]; do
        sleep 1
        tries=$((tries - 1))
      done
      if [ $tries = 0 ]; then
        echo "error: no server was found: set TARGET=http://HOST:PORT, or add --profile demo or --profile sglang" >&2
        exit 2
      fi
    fi
    case " $* ${ARGS:-} " in
      *" --headless "*) ;;
      *) if [ -n "${WEB_PORT:-}" ]; then echo "open http://127.0.0.1:$WEB_PORT in your browser" >&2; fi ;;
    esac ;;
esac
# shellcheck disable=SC2086 # split into words on purpose
exec "$@" ${ARGS:-}
