"""What most stages share: no early stop, no best evaluation, nothing to remember beyond their players."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PlainStage:
    """Defaults of the Stage protocol for a stage that only trains."""

    def stop_reason(self) -> str | None:
        """It runs to its last step."""
        return None

    def merit(self, measured: Mapping[str, float]) -> float | None:
        """No evaluation is called better than another."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Nothing beyond its players."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing beyond its players."""
