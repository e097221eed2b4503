"""Shared test code: servers, clips, processes, fleets, pages. README.md describes each module."""
