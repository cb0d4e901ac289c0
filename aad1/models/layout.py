"""Where a sequence lies: all of it here, or a part of every frame's tokens on each of several processes.

The transformer and the critic's heads call a layout around attention, the one place where a token needs the others.
A layout that is spread (``parallel/ulysses.py``) holds its own tokens of ALL heads everywhere else, and ALL tokens of
its own heads there. The parts are of a frame's tokens, so each process has something of every frame: views, chunks,
positions, a frame's modulation and a context's frames are the same whether or not anything is spread.
"""

from __future__ import annotations

from torch import Tensor


class Layout:
    """All is here and nothing moves; one that spreads a sequence overrides the four methods.

    Axes: [batch, frames, tokens, heads, head_dim], and where heads are not told apart [batch, frames, tokens, dim].
    """

    def split(self, x: Tensor) -> Tensor:
        """Own part along axis 2 of what is the same on all processes: a frame's tokens, or a query's heads."""
        return x

    def join(self, x: Tensor, whole: int) -> Tensor:
        """All parts along axis 2, ``whole`` long together: what ``split`` took apart, the same on all processes."""
        return x

    def to_heads(self, *parts: Tensor, tokens: int) -> tuple[Tensor, ...]:
        """Own tokens of all heads -> all ``tokens`` of a frame, of own heads; several tensors of one shape at once."""
        return parts

    def to_tokens(self, x: Tensor) -> Tensor:
        """All tokens of own heads -> own tokens of all heads."""
        return x


WHOLE = Layout()
