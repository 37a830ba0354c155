"""What nobody else does for a job that waits for ever. The clock is the test's."""

from dataclasses import replace

from stagecoach.launch.kube.podstate import PodView
from stagecoach.launch.kube.tending import Tending

pod = PodView(name="toy-0", uid="p0", node="n0", phase="Running")
pulling = replace(pod, phase="Pending", waiting="ImagePullBackOff", waiting_says="no such image")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_image_that_does_not_come_is_given_up_after_two_minutes_without_a_break() -> None:
    clock = Clock()
    tending = Tending(clock)
    assert tending.hopeless([pod, pulling]) == ""
    clock.now += 100
    assert tending.hopeless([replace(pod, uid="p0")]) == ""  # it came after all
    assert tending.hopeless([pulling]) == ""
    clock.now += 100
    assert tending.hopeless([pulling]) == ""
    clock.now += 21
    why = tending.hopeless([pulling])
    assert "ImagePullBackOff: no such image" in why
    assert "given up after 120 s" in why


def test_a_pod_whose_node_does_not_confirm_is_let_go_after_its_grace_period() -> None:
    clock = Clock()
    tending = Tending(clock)
    leaving = replace(pod, is_leaving=True)
    assert tending.stuck([leaving, replace(pod, uid="p1")], grace_s=30) == []
    clock.now += 39
    assert tending.stuck([leaving], grace_s=30) == []
    clock.now += 2
    assert tending.stuck([leaving], grace_s=30) == [leaving]
    assert tending.stuck([replace(leaving, uid="p2")], grace_s=30) == []
