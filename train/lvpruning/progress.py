"""When a progress line is due, and what it says of the time."""

from __future__ import annotations

import time


class Progress:
    """Of `steps` steps of which `done` were not done now; a line every `interval` seconds, and at the end."""

    def __init__(self, steps: int, interval: float, done: int = 0) -> None:
        self.steps, self.interval, self.first = steps, interval, done
        self.began, self.shown = time.monotonic(), -interval

    def due(self, done: int) -> tuple[float, str] | None:
        """Seconds per step and the time that is left, h:mm:ss, where a line is due."""
        now = time.monotonic()
        if now - self.shown < self.interval and done < self.steps:
            return None
        self.shown = now
        each = (now - self.began) / (done - self.first)
        left = int(each * (self.steps - done))
        return each, f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
