"""As much of each family's chat template as it is known by."""

from __future__ import annotations

from typing import Final

TEMPLATES: Final[dict[str, str | None]] = {
    "Hermes": "{{ tools }}<tool_call>…</tool_call><think></think>",
    "no template": None,
    "Qwen3-Coder": "{{ tools }}<tool_call><function=a><parameter=b>",
    "MiniMax M2": "{{ tools }}<minimax:tool_call><think></think>",
    "GLM": "{{ tools }}<tool_call>{name}<arg_key>k</arg_key><arg_value>v</arg_value><think>",
    "Mistral, lists": "{{ tools }}[TOOL_CALLS][AVAILABLE_TOOLS]",
    "Mistral, names": "{{ tools }}[TOOL_CALLS]…[ARGS][THINK]",
    "DeepSeek V3": "<｜tool▁calls▁begin｜>```json<think>",
    "DeepSeek V3.1": "<｜tool▁calls▁begin｜><think></think>",
    "DeepSeek V3.2": "{{ tools }}<｜DSML｜function_calls><think>",
    "DeepSeek V4": "{{ tools }}<｜DSML｜tool_calls>",
    "DeepSeek V4.1": "{{ tools }}<｜DSML｜ calls>",
    "Kimi K2": "{{ tools }}<|tool_calls_section_begin|><think>",
    "Llama 3": "{% set tools = custom_tools %}<|start_header_id|>",
    "Llama 3.1": "{{ tools }}<|python_tag|>",
    "Llama 4": "{{ tools }}<|header_start|><|python_start|>",
    "LFM2": "{{ tools }}<|tool_list_start|><|tool_call_start|>",
    "Phi 4 mini": "{{ tools }}<|tool_call|>",
    "Nemotron Nano": "{{ tools }}<TOOLCALL><think>",
    "Command R7B": "{{ tools }}<|START_THINKING|><|START_ACTION|>",
    "Gemma 3": "<start_of_turn>",
    "FunctionGemma": "{{ tools }}<start_function_call><end_function_call>",
    "Gemma 4": "{{ tools }}<|tool_call>…<|channel>thought…<channel|>",
    "gpt-oss": "{{ tools }}<|start|><|channel|>analysis<|message|><|end|>",
}
