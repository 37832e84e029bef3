"""Reading: what a chat request's answer may hold besides text, in the format that the model speaks."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint, SamplingParams
from phloem.serve.openai.constraints import ConstraintCheck, constrained
from phloem.serve.openai.errors import Unsupported
from phloem.serve.openai.tools import ToolPlan
from phloem.serve.text.formats.choose import Formats
from phloem.serve.text.formats.constraint import after_reasoning, arguments_schema, tool_constraint
from phloem.serve.text.formats.parser import OutputParser
from phloem.serve.text.formats.spec import ReasoningFormat, ToolFormat
from phloem.serve.text.tokenizer import Tokenizer


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How the answer to one prompt is constrained and parsed. `tools` None: it makes no calls; `reasoning` None: it
    holds none, the prompt having closed it or the model being of another kind."""

    plan: ToolPlan
    tools: ToolFormat | None
    reasoning: ReasoningFormat | None
    reasoning_has_begun: bool
    special_ids: dict[str, int]

    @classmethod
    def of(cls, formats: Formats, plan: ToolPlan, *, tokenizer: Tokenizer, prompt: Sequence[int]) -> Reading:
        """Unsupported when there are tools and the server was started without a format for them."""
        if plan.callable and formats.tools is None:
            raise Unsupported("tools: this server was started with --tool-format none", field="tools")
        reasoning, has_begun = formats.reasoning_state(tokenizer, prompt)
        return cls(
            plan=plan,
            tools=formats.tools if plan.callable else None,
            reasoning=reasoning,
            reasoning_has_begun=has_begun,
            special_ids=formats.special_ids,
        )

    @property
    def shown_ids(self) -> frozenset[int]:
        """Control tokens that the parser has to see."""
        tags = "".join(self.tools.texts) if self.tools is not None else ""
        tags += self.reasoning.begin + self.reasoning.end if self.reasoning is not None else ""
        return frozenset(id for tag, id in self.special_ids.items() if tag in tags)

    def parser(self) -> OutputParser | None:
        """A parser for one choice; None where all text is content."""
        if self.tools is None and self.reasoning is None:
            return None
        return OutputParser(
            tools=self.tools,
            reasoning=self.reasoning,
            reasoning_has_begun=self.reasoning_has_begun,
            names=frozenset(function.name for function in self.plan.callable),
            texts={function.name: function.texts for function in self.plan.callable},
        )

    def constrain(self, sampling: SamplingParams, *, field: str) -> SamplingParams:
        """With the constraint that the tools demand; one that came with the request, in `field`, starts behind the
        reasoning."""
        if self.tools is None or not self.plan.needs_constraint:
            return self._behind_reasoning(sampling, field=field)
        if sampling.constraint is not None:
            message = "tools: a call is required, strict, or the only one, and another field constrains the answer too"
            raise InvalidRequest(f"{message}; send one of them", field="tools")
        plan = self.plan
        constraint = tool_constraint(
            self.tools,
            plan.callable,
            is_forced=plan.is_forced,
            max_calls=plan.max_calls,
            with_schemas=plan.is_forced,
            special_ids=self.special_ids,
            reasoning=self.reasoning,
            reasoning_has_begun=self.reasoning_has_begun,
        )
        return constrained(sampling, constraint, field="tools")

    async def blame(self, constraints: ConstraintCheck) -> None:
        """InvalidRequest that names the function whose schema cannot be made into a grammar, if it is one of them."""
        if self.tools is None or not self.plan.needs_constraint:
            return
        for index, function in enumerate(self.plan.functions):
            if function in self.plan.callable and (function.is_strict or self.plan.is_forced):
                schema = Constraint("json_schema", msgspec.json.encode(arguments_schema(function)).decode())
                await constraints.check(schema, field=f"tools[{index}].function.parameters")

    def _behind_reasoning(self, sampling: SamplingParams, *, field: str) -> SamplingParams:
        if sampling.constraint is None or self.reasoning is None or not self.reasoning_has_begun:
            return sampling
        constraint = after_reasoning(sampling.constraint, self.reasoning, self.special_ids)
        return msgspec.structs.replace(sampling, constraint=constraint)
