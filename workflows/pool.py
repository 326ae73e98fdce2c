"""The processes that hold the model: one pool serves every stage of an audit."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from workflows.cluster import Placement
from workflows.models import ModelPackage
from workflows.workers import ModelHost

_STARTS = 3
Actor = Any
"""The handle of an actor that runs a `ModelHost`."""


class ModelPool:
    """Actors that are started when the first stage asks for them, and ended with the pool.

    They cost seconds to start, libraries and weights included, so they outlive a stage. package: None for stages
    that need no model.
    """

    def __init__(self, placement: Placement, package: "ray.ObjectRef[ModelPackage] | None" = None) -> None:
        self.placement = placement
        self.package: Any = package
        self._actors: list[Actor] = []
        self._met: list[Actor] = []
        self._lost = 0  # starts in a row whose process ended before it answered

    def actors(self, most: int) -> Sequence[Actor]:
        """All there are, after those are started that the placement has and `most` allows. Where the cluster has no
        room for one yet, it waits."""
        while len(self._actors) < max(1, min(self.placement.workers, most)):
            self._start()
        return tuple(self._actors)

    def meet(self, actor: Actor, ready: "ray.ObjectRef[None]") -> bool:
        """Whether an actor is there, from the answer to `ready`. Another is started in the place of one that is lost.

        Raises RayError when none is left because some in a row ended before they answered, for want of memory perhaps:
        Ray's own restarts would go on for ever.
        """
        try:
            ray.get(ready)
        except RayError:
            ray.kill(actor)  # out of reach it may live on, and keep its room
            self._actors.remove(actor)
            self._lost = 0 if actor in self._met else self._lost + 1
            if self._lost < _STARTS:
                self._start()
            elif not self._actors:
                raise
            return False
        self._met.append(actor)
        self._lost = 0
        return True

    def run_alone(self, attempts: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(host, *arguments) in one of the actors; the others are ended, and give back what they hold.

        attempts: how often it is begun where its process is lost, by chance or by what it does. Raises RayError: then
        the last loss, or what it raised itself.
        """
        for left in reversed(range(attempts)):
            actor = self._any()
            for other in self._actors:
                if other is not actor:
                    ray.kill(other)
            self._actors = [actor]
            try:
                return ray.get(actor.run.remote(function, *arguments))
            except (RayActorError, OutOfMemoryError):
                if not left:
                    raise
        raise ValueError("attempts: expected at least 1")

    def close(self) -> None:
        """End the actors. The next stage starts others."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._met, self._lost = [], [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        # What was lost with a process is begun anew by who asked for it, and counted there; so are the processes here.
        options = {**self.placement.model, "max_restarts": 0, "max_task_retries": 0}
        self._actors.append(
            _model_actor.options(**options).remote(self.package, self.placement.device, self.placement.threads)
        )

    def _any(self) -> Actor:
        """The first that answers."""
        while True:
            asked = {actor.ready.remote(): actor for actor in self.actors(1)}
            (first, *_), _ = ray.wait(list(asked), num_returns=1)
            if self.meet(asked[first], first):
                return asked[first]


_model_actor = ray.remote(ModelHost)
