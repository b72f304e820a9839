"""The calls of one turn: which run, which wait for somebody, and what comes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence

from cvllm_jax.errors import Error, McpToolExecutionError
from cvllm_jax.openai.types import Message, ToolCall
from cvllm_jax.responses.agent.types import (
    AgentTask,
    AgentTool,
    Approval,
    ApprovalPolicy,
    ToolEnded,
    ToolOutcome,
    ToolStarted,
)

__all__ = ["CallRound", "CallRunner", "failed"]


def failed(error: str) -> ToolOutcome:
    """The outcome of a call that did not work, as the model is told."""
    return ToolOutcome(text=f"Error: {error}", error=error)


class CallRunner:
    """Runs the calls of a task within the task's limits."""

    def __init__(self, task: AgentTask) -> None:
        self._task = task
        self._tools = {tool.name: tool for tool in task.tools}
        self._left = task.max_tool_calls

    @property
    def exhausted(self) -> bool:
        """Whether as many calls have run as may."""
        return self._left is not None and self._left <= 0

    def round(self, calls: Sequence[ToolCall], approval: ApprovalPolicy | None) -> CallRound:
        """The calls of one turn, to be run. No ``approval``: they may all run."""
        return CallRound(self, calls, approval)

    async def decide(self, call: ToolCall, approval: ApprovalPolicy | None) -> AgentTool | ToolOutcome | Approval:
        """The tool that runs a call, the outcome of one that does not run, or who it is left to.

        ASK means whoever decides on approvals, ALLOW whoever runs the calls that the agent does not.
        """
        tool = self._tools.get(call.function.name)
        if tool is None:
            return failed(f"there is no tool called {call.function.name[:100]!r}")
        if tool.run is None:
            return Approval.ALLOW  # whoever runs it judges its arguments, too
        try:
            call.to_mcp_call()
        except McpToolExecutionError as error:
            return failed(str(error))
        if self.exhausted:
            return failed(f"the limit of {self._task.max_tool_calls} tool calls is reached; answer with what you have")
        match Approval.ALLOW if approval is None else await approval(call):
            case Approval.DENY:
                return failed("this call was denied")
            case Approval.ASK:
                return Approval.ASK
        if self._left is not None:
            self._left -= 1
        return tool

    async def run(self, tool: AgentTool, call: ToolCall) -> ToolOutcome:
        """Run one call, whose failure is an outcome as well."""
        assert tool.run is not None
        try:
            async with asyncio.timeout(self._task.tool_timeout_secs) as limit:
                outcome = await tool.run(call)
        except TimeoutError:
            if not limit.expired():
                raise
            return failed(f"{tool.name!r} did not answer within {self._task.tool_timeout_secs:g} seconds")
        except Error as error:
            return self._bounded(failed(str(error)))
        return self._bounded(outcome)

    def _bounded(self, outcome: ToolOutcome) -> ToolOutcome:
        most, length = self._task.max_tool_output_chars, len(outcome.text)
        if length <= most:
            return outcome
        note = f"\n[cut: the first {most} of {length} characters]"
        return ToolOutcome(text=outcome.text[:most] + note, error=outcome.error and outcome.error[:most])


class CallRound:
    """The calls of one turn. Iterate :meth:`events`; the rest is known when they have ended."""

    def __init__(self, runner: CallRunner, calls: Sequence[ToolCall], approval: ApprovalPolicy | None) -> None:
        self._runner = runner
        self._calls = calls
        self._approval = approval
        self.messages: list[Message] = []
        """Results, in the order of the calls."""
        self.open_calls: list[ToolCall] = []
        """Calls that are left to whoever asked."""
        self.asks = False
        """Whether some of these wait for approval."""

    async def events(self) -> AsyncGenerator[ToolStarted | ToolEnded, None]:
        """Run what may run, all at once. A call that is refused has no :class:`ToolStarted`."""
        # one question after the other: a policy may ask a person
        decisions = [await self._runner.decide(call, self._approval) for call in self._calls]
        running = {
            index: asyncio.create_task(self._runner.run(decision, self._calls[index]))
            for index, decision in enumerate(decisions)
            if isinstance(decision, AgentTool)
        }
        try:
            for index in running:
                yield ToolStarted(self._calls[index])
            for index, (call, decision) in enumerate(zip(self._calls, decisions)):
                if isinstance(decision, Approval):
                    self.open_calls.append(call)
                    self.asks |= decision is Approval.ASK
                    continue
                if isinstance(decision, ToolOutcome):
                    outcome = decision
                else:  # awaited itself, a task that ignores its cancellation would make this one ignore it, too
                    await asyncio.wait([running[index]])
                    outcome = running[index].result()
                self.messages.append(Message.tool_with_name(call.id, outcome.text, call.function.name))
                yield ToolEnded(call, outcome)
        finally:
            await _cancelled(running.values())


async def _cancelled(tasks: Iterable[asyncio.Task[ToolOutcome]]) -> None:
    """Cancel what still runs, and wait until it has cleaned up."""
    unfinished = [task for task in tasks if not task.done()]
    for task in unfinished:
        task.cancel()
    await asyncio.gather(*unfinished, return_exceptions=True)
