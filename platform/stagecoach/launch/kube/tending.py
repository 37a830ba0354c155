"""What no controller of the cluster does for a job, and whoever waits for it must: give up what can never start, let go of pods whose node
is lost, and touch what its queue has overlooked. Time is our own monotonic clock, from when we saw it first: no clock of the cluster is
believed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stagecoach.constants import CANNOT_START, GIVE_UP_S
from stagecoach.launch.kube.podstate import PodView, starting_trouble

STUCK_S = 10.0  # beyond the grace period: the kubelet would have killed it long ago
CUT_OFF_S = 20.0  # of a pod whose kubelet is silent, so that nothing in it has heard of a grace period; one that is back says so in 10 s
AGAIN_S, RARELY_S = 30.0, 300.0  # before a pod that is still there is let go once more, doubled each time
OVERLOOKED_S = 30.0  # a queue that is well takes a job up within a second or two


@dataclass
class Tending:
    """Remembers since when each job that is looked at, and each of its pods, is in trouble."""

    clock: Callable[[], float] = time.monotonic
    _since: dict[tuple[str, str], float] = field(default_factory=dict)
    _let_go: dict[str, tuple[int, float]] = field(default_factory=dict)  # pod -> (how often, when next)

    def hopeless(self, pods: Sequence[PodView]) -> str:
        """Why the job will never start, once that is sure; "" until then."""
        late = [pod for pod in pods if self._lasts(CANNOT_START, pod.uid, pod.is_hopeless) > GIVE_UP_S]
        return f"{starting_trouble(late)}; given up after {GIVE_UP_S:.0f} s" if late else ""

    def stuck(self, pods: Sequence[PodView], *, grace_s: float) -> list[PodView]:
        """Pods that were deleted and whose node does not confirm that they are gone: for longer than their grace period, or for CUT_OFF_S
        in which their kubelet was silent. Their attempt is fenced: what they still write is never read, so that they may be taken for
        dead. A shorter silence costs nothing."""
        found = []
        for pod in pods:
            leaving_s = self._lasts("leaving", pod.uid, pod.is_leaving)
            cut_off_s = self._lasts("cut off", pod.uid, pod.is_leaving and pod.is_cut_off)
            if leaving_s > grace_s + STUCK_S or cut_off_s > CUT_OFF_S:
                found.append(pod)
        return found

    def turn(self, uid: str) -> int:
        """Which time it is that this pod is let go: 1 at once, 2 after AGAIN_S, then ever more rarely, for a finalizer may hold it for
        days; 0 until then."""
        turns, due = self._let_go.get(uid, (0, self.clock()))
        if self.clock() < due:
            return 0
        self._let_go[uid] = (turns + 1, self.clock() + min(AGAIN_S * 2**turns, RARELY_S))
        return turns + 1

    def overlooked(self, uid: str, is_ignored: bool) -> bool:
        """Whether it is time to touch the job, which its queue has ignored for so long, or again for so long since the last time."""
        if self._lasts("ignored", uid, is_ignored) <= OVERLOOKED_S:
            return False
        self._since["ignored", uid] = self.clock()
        return True

    def _lasts(self, what: str, uid: str, is_so: bool) -> float:
        key = (what, uid)
        if not is_so:
            self._since.pop(key, None)
            return 0.0
        return self.clock() - self._since.setdefault(key, self.clock())
