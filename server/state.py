"""What the routes share: the adapter once the model is loaded, and how far loading is until then."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from cvllm_jax.openai import AdapterConfig, OpenAIAdapter
from cvllm_jax.responses.service import ResponsesService
from cvllm_jax.responses.store import ResponseStore
from server.errors import ApiError
from server.settings import ServerSettings

if TYPE_CHECKING:
    from starlette.requests import Request

    from cvllm_jax.engine.opening import AnyEngine

__all__ = ["ServerState", "state_of"]


class ServerState:
    """Loading, then ready, then stopping. One event loop's; :meth:`report` may be called anywhere."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.created = int(time.time())
        self.draining = False
        """No new requests."""
        self.stopped = asyncio.Event()
        """Running requests end."""
        self._adapter: OpenAIAdapter | None = None
        self._store: ResponseStore | None = None
        self._responses: ResponsesService | None = None
        self._opening = asyncio.Lock()
        self._model_name: str | None = None
        self._progress: dict[str, Any] = {"stage": "starting", "done": 0, "total": 0}

    def report(self, stage: str, done: int, total: int) -> None:
        """An ``EngineConfig.progress`` that /health shows."""
        self._progress = {"stage": stage, "done": done, "total": total}

    def ready(self, engine: AnyEngine) -> None:
        """Serve ``engine`` from now on, with its model's own sampling defaults."""
        config = AdapterConfig(
            tool_parser=self.settings.tool_parser,
            reasoning_parser=self.settings.reasoning_parser,
        )
        self._model_name = self.settings.served_model_name or engine.model_info().name
        self._adapter = OpenAIAdapter.with_config(engine, config)

    async def open_store(self) -> ResponseStore:
        """The store of responses, opened when it is first asked for; raises ConfigError and StoreUnavailableError."""
        async with self._opening:
            if self._store is None:
                self._store = await ResponseStore.open(self.settings.store, self.settings.store_limits)
            return self._store

    async def responses(self) -> ResponsesService:
        """What makes responses; raises as :attr:`adapter` and :meth:`open_store` do."""
        adapter = self.adapter
        store = await self.open_store()
        if self._responses is None:
            self._responses = ResponsesService(adapter, store, self.settings.responses_config())
        return self._responses

    async def aclose(self) -> None:
        """End responses that run in the background, and close the store. The engine stays its owner's."""
        self.stop()
        responses, self._responses = self._responses, None
        store, self._store = self._store, None
        if responses is not None:
            await responses.aclose()
        if store is not None:
            await store.aclose()

    def drain(self) -> None:
        """Take no new requests."""
        self.draining = True

    def stop(self) -> None:
        """End the requests that still run."""
        self.draining = True
        self.stopped.set()

    @property
    def adapter(self) -> OpenAIAdapter:
        """The adapter; raises ApiError 503 while there is none and when the server stops."""
        if self.draining:
            raise stopping_error()
        if self._adapter is None:
            raise ApiError(
                503,
                f"The model is still loading ({self._progress['stage']}); try again soon.",
                kind="server_error",
                code="model_loading",
                headers={"Retry-After": "2"},
            )
        return self._adapter

    @property
    def model_name(self) -> str:
        """The id of the served model; raises as :attr:`adapter` does."""
        assert self.adapter is not None
        assert self._model_name is not None
        return self._model_name

    def health(self) -> dict[str, Any]:
        """The body of /health; ``status`` is ok, loading, failed or stopping."""
        if self.draining:
            return {"status": "stopping"}
        if self._adapter is None:
            return {"status": "loading", "progress": self._progress}
        if (failure := self._adapter.engine.failure) is not None:
            return {"status": "failed", "model": self._model_name, "message": f"the engine has stopped: {failure}"}
        health = {"status": "ok", "model": self._model_name}
        return health | ({"warming_up": True} if self._adapter.engine.warming_up else {})


def stopping_error() -> ApiError:
    return ApiError(503, "The server is shutting down.", kind="server_error", code="server_stopping")


def state_of(request: Request) -> ServerState:
    """The state of the application that received ``request``."""
    state: ServerState = request.app.state.server
    return state
