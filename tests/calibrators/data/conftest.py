"""Stores that fail are asked again at once."""

from __future__ import annotations

from stores import no_time_is_waited as no_time_is_waited
