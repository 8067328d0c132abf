#!/usr/bin/env python3
"""Writes tests/golden/prompt/templates.jsonl: chat templates as LLaVA folders carry them, written in several ways, and what
transformers prints for them. python3 train/golden_prompt.py [OUT]; needs transformers 4.57 and jinja2.

A line is {"name", "source", "prompts": [[system or null, text, n_images, prompt or null], ...]}; a null prompt is one the
template refuses. "prompts": null is a template that lvpipe must not know.
"""
import json
import re
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

IMAGES = "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"


def texts(printed):
    return "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}" + printed + "{% endfor %}"


def llava(generation=True):
    said = texts("{{ content['text'] + ' '}}")
    marked = texts("{% generation %}{{ content['text'] + ' '}}{% endgeneration %}")
    branch = "{% if message['role'] != 'assistant' %}" + said + "{% else %}" + marked + "{% endif %}"
    return ("{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
            "{# Render all images first #}" + IMAGES + "{# Render all text next #}" + (branch if generation else said) +
            "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")


VICUNA = ("{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'][0]['text'] }}{% else %}"
          "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}" + IMAGES + "{# Render all text next #}" +
          texts("{{ content['text'] + ' '}}") + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")


def mistral(eos, system=True):
    head = ("{% if message['role'] == 'system' %}{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
            "{% elif message['role'] == 'user' %}") if system else "{% if message['role'] == 'user' %}"
    return ("{% for message in messages %}" + head + "{{ '[INST] ' }}{# Render all images first #}" + IMAGES +
            "{# Render all text next #}" + texts("{{ content['text'] }}") + "{{' [/INST]' }}{% elif message['role'] == 'assistant' %}"
            "{{ ' ' + message['content'][0]['text'] + '" + eos + " '}}{% else %}"
            "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")


PLAIN = """{% for message in messages %}
    {{- message.role | upper }}: {% for content in message.content %}
        {%- if content.type == "image" %}<image>
{% elif content.type == "text" %}{{ content.text }} {% endif %}
    {%- endfor %}
{%- endfor %}
{% if add_generation_prompt %}ASSISTANT:{% endif %}
"""
CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}" + IMAGES + texts("{{ content['text'] }}") +
          "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def rewritten(source):
    """The same template, written by another hand."""
    yield "as published", source
    yield "quotes", source.replace("'", '"')
    yield "attributes", re.sub(r"(message|content)\['(role|content|type|text)'\]", r"\1.\2", source)
    yield "escapes", source.replace("\n", "\\n")
    yield "no comments", re.sub(r"{#.*?#}", "", source)
    yield "trimmed", re.sub(r"\s*({%|{#) ?", r"\1- ", source).replace(" %}", " -%}").replace("-%}{{", "%}{{") + "\n"
    yield "lines", source.replace("%}{%", "%}\n    {%").replace("#}{%", "#}\n{%") + "\n"
    yield "windows", source.replace("%}{%", "%}\r\n  {%")
    yield "tight", source.replace("{{ ", "{{").replace(" }}", "}}").replace(" | ", "|").replace(", ", ",")


def render(source, system, text, n_images):
    said = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system is not None else []
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": text}]
    try:
        out, _ = render_jinja_template([said + [{"role": "user", "content": content}]], chat_template=source,
                                       add_generation_prompt=True)
        return out[0]
    except Exception as error:  # raise_exception of a template without a system role
        assert "roles" in str(error), error
        return None


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/prompt")
    out.mkdir(parents=True, exist_ok=True)
    known = {"llava-1.5": llava(), "llava-1.5 before generation": llava(False), "vicuna": VICUNA, "mistral": mistral("</s>"),
             "mistral, old eos": mistral("<\\\\s>"), "mistral, no system": mistral("</s>", False)}
    cases = [(f"{name}, {how}", source) for name, text in known.items() for how, source in rewritten(text)]
    cases.append(("plain", PLAIN))
    asked = [(s, t, n) for s in (None, "A chat.") for t, n in (("What is this?", 1), (" two\nlines ", 2), ("", 0))]
    with open(out / "templates.jsonl", "w") as file:
        for name, source in cases:
            prompts = [[*a, render(source, *a)] for a in asked]
            file.write(json.dumps({"name": name, "source": source, "prompts": prompts}) + "\n")
        changed = llava()
        for name, source in {"chatml": CHATML, "another word": changed.replace("ASSISTANT", "BOT"),
                             "a space more": changed.replace("': '", "':  '"), "text": "hello", "empty": "",
                             "no image": changed.replace(IMAGES, ""), "open tag": changed[:-5], "open string": "{{ 'a }}"}.items():
            file.write(json.dumps({"name": name, "source": source, "prompts": None}) + "\n")


if __name__ == "__main__":
    main()
