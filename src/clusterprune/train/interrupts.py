"""Ctrl-C between two steps: what was learnt so far is saved before the run stops."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

SAME_PRESS = 1.0
"""Seconds within which a second Ctrl-C is taken for the first one, pressed twice."""


class Interrupts:
    """Hold back Ctrl-C until the training is between two steps.

    In the middle of a step, weights and momentum do not belong together and cannot be saved. So the first Ctrl-C is
    noted, and :attr:`asked` says so at the next place where saving makes sense. A second one, a second later or more,
    stops at once, from whatever takes so long; what was saved before stays.

    Outside of the main thread, and where Ctrl-C is ignored or left to the system, nothing is held back.

    Parameters
    ----------
    hold
        False holds nothing back: where nothing is saved anyway, or several processes would have to stop at the same
        step.
    """

    def __init__(self, *, hold: bool) -> None:
        self.asked = False
        self._hold = hold
        self._since = 0.0
        self._before: signal._HANDLER = None

    def __enter__(self) -> Self:
        """Begin to hold back."""
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGINT)
        if self._hold and main and callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave Ctrl-C to whom it belonged before; one that is still held back is delivered."""
        self._restore()
        if self.asked and kind is None:
            self.deliver()

    def deliver(self) -> None:
        """Hand what was held back to whom it belongs: by default, that raises KeyboardInterrupt."""
        self.asked = False
        before = self._before
        if callable(before):
            before(signal.SIGINT, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._since = True, now
        elif now - self._since >= SAME_PRESS and callable(self._before):
            self._before(number, frame)

    def _restore(self) -> None:
        if callable(self._before) and signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, self._before)
