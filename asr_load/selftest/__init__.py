"""Run asr-load against a server whose time stamps are known, to check and calibrate its measurements."""
