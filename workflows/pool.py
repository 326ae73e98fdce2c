"""The processes that hold the model: one pool serves every stage of an audit."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import ray

from workflows.cluster import Placement
from workflows.models import ModelPackage
from workflows.workers import ModelHost

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

    def actors(self, most: int) -> list[Actor]:
        """As many as the placement has and `most` allows; those for which the cluster has no room yet wait for it."""
        while len(self._actors) < max(1, min(self.placement.workers, most)):
            # What was lost with a process is tried again by who asked for it, and counted there.
            options = {**self.placement.model, "max_restarts": -1, "max_task_retries": 0}
            actor = _model_actor.options(**options).remote(self.package, self.placement.device, self.placement.threads)
            self._actors.append(actor)
        return list(self._actors)

    def run(self, function: Callable[..., Any], *arguments: Any) -> "ray.ObjectRef[Any]":
        """function(host, *arguments) in one of the actors; the others are ended, and give back what they hold.

        Raises RayActorError when its process cannot be had.
        """
        (actor,) = self.actors(1)[:1]
        self._end(self._actors[1:])
        self._actors = [actor]
        ray.get(actor.ready.remote())  # a call to one that is being restarted would fail
        reference: ray.ObjectRef[Any] = actor.run.remote(function, *arguments)
        return reference

    def close(self) -> None:
        """End the actors. The next stage starts others."""
        self._end(self._actors)
        self._actors = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _end(actors: list[Actor]) -> None:
        for actor in actors:
            ray.kill(actor)


_model_actor = ray.remote(ModelHost)
