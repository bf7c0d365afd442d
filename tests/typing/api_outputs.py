"""Structured output as mypy and pyright must see it. `make check` reads this; it does not run."""

from dataclasses import dataclass
from typing import Any, TypedDict, assert_type

from msgspec import Struct

from callboard import Agent, Model, Reply, Session
from callboard.actors.output import Output


class Forecast(Struct):
    city: str
    degrees: int


@dataclass
class Order:
    number: int


class Ticket(TypedDict):
    subject: str


async def an_agent_whose_answers_have_a_form(model: Model, session: Session) -> None:
    agent = Agent("Weather", model=model, session=session, output=Forecast)
    reply = await agent.chat("Paris?")

    assert_type(agent, Agent[Forecast])
    assert_type(reply.output, Forecast)
    assert_type((await agent.chat("Which order?", output=Order)).output, Order)


async def a_form_for_one_answer(agent: Agent) -> None:
    assert_type((await agent.chat("Paris?", output=Forecast)).output, Forecast)
    assert_type((await agent.chat("Which order?", output=Order)).output, Order)
    assert_type((await agent.chat("What is it about?", output=Ticket)).output, Ticket)
    assert_type((await agent.chat("Where?", output=list[str])).output, list[str])


async def a_form_that_checkers_cannot_tell(agent: Agent, schema: dict[str, Any], form: Output) -> None:
    assert_type((await agent.chat("Paris?", output=schema)).output, Any)
    assert_type(await agent.chat("Paris?", output=form), Reply[Any])


async def a_streamed_form(agent: Agent) -> None:
    async with agent.stream("Paris?", output=Forecast) as stream:
        async for _ in stream:
            pass

    assert_type(stream.reply.output, Forecast)


async def a_run_that_goes_on(agent: Agent[Forecast], run_id: str) -> None:
    assert_type((await agent.resume(run_id)).output, Forecast)
    assert_type((await agent.resume(run_id, approve=True, output=Order)).output, Order)


async def a_plain_agent(model: Model, session: Session) -> None:
    agent = Agent("Plain", model=model, session=session)

    assert_type(await agent.chat("Hello"), Reply[Any])


async def a_union(agent: Agent) -> None:
    await agent.chat("Paris, or an order?", output=Forecast | Order)
