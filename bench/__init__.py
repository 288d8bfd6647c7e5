"""Ratios between this agent and aioice, measured side by side in one run; see ``README.md`` of this folder."""
