"""Explanations, in Markdown, that docs/options.md adds to the help texts of options."""

from __future__ import annotations

from collections.abc import Iterable

from asr_load.results.slo import GOODPUT, OF_VALUES


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


EXPLANATIONS = {
    "--api": """`chat` sends audio as `audio_url` (SGLang, vLLM), `chat-input-audio` as OpenAI's `input_audio`.
        `transcriptions` posts a form to `/v1/audio/transcriptions`. `realtime` holds [WebSocket
        sessions](realtime.md).""",
    "--model": """If the server lists several models, you must name one. The name may be missing from the list: the
        trial request shows whether it works.""",
    "--prompt": """A transcription's prompt is context, not an instruction, so `transcriptions` sends none unless you
        set one.""",
    "--api-key": """The key is written to no file, page or log.""",
    "--preset": """[Models](models.md) lists the presets. An option that you set overrides the preset; `none` uses no
        preset.""",
    "--language": """Every [spelling](data.md#languages) of a language works. Transcriptions and realtime sessions send
        the ISO 639-1 code. Chat requests have its English name in place of `{language}` in the prompt. The normalizer
        does not depend on it, but on `prepare.py --language`.""",
    "--text-format": """`qwen-asr`: `language English<asr_text>Hello`, in each segment. `glm`: `The transcription of the
        audio is 'Hello'.` `moss`: `[0.00][S01]Hello[1.20]`. `think`: a block of reasoning before the transcript.
        `tags`: `<|en|><|NEUTRAL|>Hello`. `auto` detects the envelope at the start of the text; `raw` keeps the text as
        it is. The record keeps the original as `raw_text`, and `ttft_text` is the time to the first character after the
        envelope.""",
    "--endpoint": """Example: `--host http://gateway --endpoint /speech/v1/chat/completions`. `--host` itself may end in
        `/v1`, `/v1/models` or the path of the API. If it has any other path, the error prints the options to use. A
        user and password in `--host` become a header. Files and reports show a key in the query of `--endpoint` as
        `***`.""",
    "--extra-body": """A field that is `null` is removed from the request.""",
    "--omit": """For servers that reject fields they do not know, for example `--omit stream_options,max_tokens`.""",
    "--ca": """The default is the file in `REQUESTS_CA_BUNDLE` or `SSL_CERT_FILE`, or else the certificates of the
        package certifi. In a fleet, each worker reads the files of `--ca` and `--cert` on its own machine.""",
    "--insecure": """The summary then says that the certificate was not verified.""",
    "--proxy": """Example: `http://user:password@proxy:3128`. Only the proxy receives the password. HTTPS goes through
        it by CONNECT. The environment's proxies are not used for servers on this machine.""",
    "--upstream": """Requests and certificates still use the name in `--host`. Users are spread evenly over the
        replicas, also in a fleet, and the summary shows the share and the latencies of each. A replica that cannot be
        reached is skipped for ten seconds, with a warning. Without `--upstream`, connections take turns over all
        addresses that DNS returns for `--host`.""",
    "--ready-timeout": """The test polls `/health`, or `/v1/models` if there is no `/health`, and prints what it waits
        for.""",
    "--flush-cache": """It posts to `/flush_cache`, which SGLang accepts only when it is idle. SGLang keeps its cache of
        audio embeddings: use `--unique` to make clips new.""",
    "--no-preflight": """Otherwise the test sends one trial request that no metric or record includes, and a second one
        if the first fails. If both fail, the test ends with exit code 2 and the server's error.""",
    "--realtime-dialect": """[Realtime](realtime.md) explains the options of this group.""",
    "--data": """[Data sets](data.md) shows how to prepare one.""",
    "--unique": """[What a server may cache](data.md#caches) explains the three. With `once` and `none`, the summary
        compares the TTFT of clips that were sent before with their first TTFT.""",
    "--order": """`shuffle` makes a new order for each pass over the clips.""",
    "--mix": """With `0-5:70,5-15:25,15-:5`, 70 of every 100 requests have clips of up to 5 s, 25 of 5 to 15 s, and 5
        longer ones. They are spread evenly, also in a fleet. To mix data sets, use [classes of
        users](locustfile.md#several-classes).""",
    "--arrivals": """[Load models](load-models.md) describes the three.""",
    "--requests": """Requests that start during `--warmup-time` count towards N.""",
    "--retries": """The retry waits as long as the header says, at most 30 s. Each try has its own record and counts as
        a request.""",
    "--rate-stages": """`60s:5,30s:5-20,2m:20` holds 5 requests per second for 60 s, rises to 20 within 30 s, and holds
        20. The last rate stays until the test ends.""",
    "--arrival-trace": """A `.csv` file has a column `at` or `timestamp`. A `.jsonl` file has numbers, or objects with
        one of these fields. Times must be in order.""",
    "--shape": """Needs `-f locustfiles/transcribe.py,locustfiles/shapes.py`; see [the web UI](web-ui.md).""",
    "--step-time": """Belongs to the [search for capacity](capacity.md), as `--resume` does.""",
    "--resume": """The server, the data and the options of the request must be the same as in that search.""",
    "--warmup-requests": """Records mark them with `warmup: true`.""",
    "--normalizer": """[Metrics](metrics.md) describes the four.""",
    "--slo": f"""A latency limit below 5 needs a unit, here and in `--goodput`. Available are `wer:mean`, `cer:mean`,
        `errors:rate`, and `mean`, `max` or a percentile (`p95`, `p99.9`) of these [metrics](metrics.md):
        {_code(OF_VALUES)}.""",
    "--goodput": f"""The summary reports the requests per second that met all limits. Metrics: {_code(GOODPUT)}.""",
    "--metadata": """Stored in `run.json` and `summary.json`, and printed in the summary.""",
    "--stall-timeout": """The limit includes the wait for the first byte.""",
    "--allow-host": """Without it, only the server in `--host` receives them; see [SECURITY.md](../SECURITY.md).""",
    "--fleet-token-file": """See [several machines](distributed.md).""",
    "--web-allow-host": """For example the name of a reverse proxy in front of it.""",
    "--connections": """With `new`, the time to connect is the separate metric `connect`, and no latency includes
        it.""",
    "--reader": """[Accuracy of the load generator](accuracy-of-the-client.md) compares the three.""",
}
"""Explanations by an option's first name."""
