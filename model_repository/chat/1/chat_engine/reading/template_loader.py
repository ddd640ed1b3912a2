"""Finds a checkpoint's chat template and, by trying it, what it wants and what it does with a conversation."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from jinja2 import meta, nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.reading import template_probes as probes
from chat_engine.reading.chat_template import OWN_VARIABLES, ChatTemplate, TemplateRefusalError, Tool
from chat_engine.reading.template_form import Form, Silence

log = logging.getLogger(__name__)

NO_TEMPLATE = "none"
_DEFAULT, _FOR_TOOLS = "default", "tool_use"
# Roles whose contents are parts; strings come first.
_ROLES = ("system", "user", "assistant")
_PARTS = tuple(map(frozenset, ((), _ROLES, ("user",), ("user", "system"), ("user", "assistant"))))
_SILENCES: tuple[Silence, ...] = ("empty", "null", "missing")
_REASONING = re.compile(r"\breasoning\b")


def load_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> ChatTemplate | None:
    """The template that the checkpoint, or the settings by `name`, chooses; None where there is none.

    Where the checkpoint has another one for tools, and the settings name none, that one goes with it.

    Raises:
        ConfigError: there is no template of that name, or there are several and no name.
        UnsupportedModelError: it does not render one question, or leaves the question out.
    """
    named = _named(tokenizer.chat_template)
    chosen = _choose(named, name)
    if chosen is None:
        return None
    template = _tried(tokenizer, named[chosen])
    if name is None and chosen != _FOR_TOOLS and _FOR_TOOLS in named:
        template = replace(template, for_tools=_tried_for_tools(tokenizer, named[_FOR_TOOLS]))
    if all(one.shows_tools and not one.shows_calls for one in template.variants[-1:]):
        log.warning("the chat template shows tools but leaves out calls of them; conversations with calls are refused")
    return template


def _named(templates: str | Mapping[str, str] | None) -> dict[str, str]:
    return {_DEFAULT: templates} if isinstance(templates, str) and templates else dict(templates or {})


def _choose(named: Mapping[str, str], name: str | None) -> str | None:
    if name == NO_TEMPLATE or (not named and name is None):
        return None
    chosen = name or (_DEFAULT if len(named) > 1 else next(iter(named)))
    if chosen not in named:
        there = ", ".join(sorted(named)) or NO_TEMPLATE
        raise ConfigError(f"chat_template: the checkpoint has no chat template {chosen}; choose one of: {there}")
    return chosen


def _tried(tokenizer: PreTrainedTokenizerBase, source: str) -> ChatTemplate:
    template = _that_hears_a_question(tokenizer, source)
    unheard = template.loses("system", "user") | template.loses("user", "assistant", "user")
    if "user" in unheard:
        raise UnsupportedModelError("the chat template leaves a user's text out of a conversation of several turns")
    if unheard:
        log.warning(
            "the chat template leaves out what %s says; such messages are refused", " and ".join(sorted(unheard))
        )
    form = replace(
        template.form,
        developer=_knows_developer(template),
        also_reasoning="reasoning" if _REASONING.search(source) else None,
    )
    template = replace(template, form=form, unheard=frozenset(unheard), reads=_variables(source) - OWN_VARIABLES)
    template = replace(template, shows_tools=_shows_tools(template, probes.TOOL))
    if template.shows_tools and not _shows_tools(template, probes.TOOL_WITHOUT_PURPOSE):
        template = replace(template, form=replace(template.form, described=True))
    return _with_calls(template)


def _tried_for_tools(tokenizer: PreTrainedTokenizerBase, source: str) -> ChatTemplate | None:
    try:
        return _tried(tokenizer, source)
    except UnsupportedModelError as error:
        log.warning("the chat template %s is not used: %s", _FOR_TOOLS, error)
        return None


def _variables(source: str) -> frozenset[str]:
    """Those that it reads before it sets them itself; not the functions that transformers gives to every template.

    jinja2 alone also names those that are set in only one branch.
    """
    environment = _compile_jinja_template(source).environment
    tree = environment.parse(source)
    first: dict[str, str] = {}
    for name in _names(tree):
        first.setdefault(name.name, name.ctx)
    read = {name for name in meta.find_undeclared_variables(tree) if first.get(name) == "load"}
    return frozenset(read - set(environment.globals))


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    """In the order in which they are used: a value before the name that it gets."""
    if isinstance(node, nodes.Name):
        yield node
    last = ("target",) if isinstance(node, nodes.Assign) else ("target", "body", "else_")
    for fields in ({"exclude": last}, {"only": last}):
        for child in node.iter_child_nodes(**fields):
            yield from _names(child)


def _knows_developer(template: ChatTemplate) -> bool:
    """By its source: many write down the name of any role, for models that have never seen this one."""
    if "developer" not in template.source:
        return False
    roles = ("developer", "user")
    return replace(template, form=replace(template.form, developer=True)).hears(*roles) == set(roles)


def _shows_tools(template: ChatTemplate, tool: Tool) -> bool:
    conversations = (probes.turns_of(roles) for roles in (("user",), ("system", "user")))
    texts = (template.try_turns(turns, (tool,)) for turns in conversations)
    return any(probes.shows_tool(text, tool) for text in texts if text is not None)


def _with_calls(template: ChatTemplate) -> ChatTemplate:
    """With the form of calls and results in which they reach the prompt, as they are if possible."""
    best, cleaner = None, False
    for form in _forms_of_calls(template.form):
        candidate = replace(template, form=form, shows_calls=True)
        texts = [text for text in candidate.prompts_with_tools() if probes.shows_call(text)]
        clean = any(map(probes.is_clean, texts))
        if texts and (best is None or (clean and not cleaner)):
            best, cleaner = candidate, clean
        if cleaner:
            break
    return best or template


def _forms_of_calls(form: Form) -> Iterator[Form]:
    """The most usual first."""
    parts = (form.parts, form.parts | {"tool"})
    for short, silence, of_tool, text in itertools.product((False, True), _SILENCES, parts, (False, True)):
        yield replace(form, short_ids=short, silence=silence, parts=of_tool, arguments_as_text=text)


def _that_hears_a_question(tokenizer: PreTrainedTokenizerBase, source: str) -> ChatTemplate:
    """With the form of contents in which a question reaches the prompt, and the texts of most other roles too."""
    templates = [ChatTemplate(tokenizer, source, Form(parts)) for parts in _PARTS]
    best = max(templates, key=lambda template: ("user" in (heard := _heard(template)), len(heard)))
    if "user" in _heard(best):
        return best
    advice = f"mend it in tokenizer_config.json or chat_template.jinja, or set chat_template to {NO_TEMPLATE}"
    try:
        templates[0].probe("user")
    except TemplateRefusalError as refusal:
        raise UnsupportedModelError(f"the chat template cannot render one question: {refusal}; {advice}") from refusal
    raise UnsupportedModelError(f"the chat template leaves the question out of the prompt; {advice}")


def _heard(template: ChatTemplate) -> set[str]:
    conversations = (("user",), ("system", "user"), ("user", "assistant", "user"))
    return set().union(*(template.hears(*roles) for roles in conversations))
