"""What most stages share: no early stop, nothing to remember beyond their players."""

from __future__ import annotations

from typing import Any


class PlainStage:
    """Defaults of the Stage protocol for a stage that only trains."""

    def stop_reason(self) -> str | None:
        """It runs to its last step."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Nothing beyond its players."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing beyond its players."""
