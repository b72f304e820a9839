"""Agents: conversations whose tools really run, and OpenAI's Responses API."""

from __future__ import annotations
