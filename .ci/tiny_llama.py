"""Makes a Llama of 1.6 megabytes that has learnt one conversation by heart: a tool's call, and what follows from it.

    python .ci/tiny_llama.py FOLDER

It is for `transformers serve`, which cannot be told to call a tool (it ignores tool_choice), so the model must want to.
To anything else it says gibberish, broken characters included. Nothing is downloaded: the weights begin at random and
are trained here, some five seconds on one core. The conversation is that of tests/servers/test_transformers_serve.py.
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

QUESTION = "How is the weather in Paris?"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ANSWER = "It is raining in Paris, 9 °C."

STEPS_MAX = 1000
LOSS_ENOUGH = 0.005
"""At which greedy decoding has each token right, by far."""

# What a call was, and what its tool said, does not matter here: that there was one is all the model reads.
CHAT_TEMPLATE = (
    "{% for message in messages if message.role != 'system' %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.tool_calls or message.role == 'tool' %}done"
    "{% elif message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>)", "content": "text"},
    },
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and ChatML's marks."""
    marks = ["<s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate([*marks, *alphabet])}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def lesson(tokenizer: PreTrainedTokenizerFast, messages: list[dict], answer: str) -> dict[str, torch.Tensor]:
    """The conversation so far, which is not to be learnt, and the answer, which is."""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    given = tokenizer(prompt, add_special_tokens=False).input_ids
    told = tokenizer(f"{answer}<|im_end|>", add_special_tokens=False).input_ids
    not_learnt = -100  # transformers' mark for a label without loss
    return {
        "input_ids": torch.tensor([given + told]),
        "labels": torch.tensor([[not_learnt] * len(given) + told]),
    }


def teach(model: LlamaForCausalLM, lessons: list[dict[str, torch.Tensor]]) -> None:
    """Until all of them are known by heart."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(STEPS_MAX):
        loss = sum(model(**each).loss for each in lessons)
        if loss.item() < LOSS_ENOUGH:
            print(f"learnt in {step} steps")
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sys.exit(f"not learnt in {STEPS_MAX} steps: the loss is {loss.item():.3f}")


def main(folder: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    asked = [{"role": "user", "content": QUESTION}]
    called = [*asked, {"role": "assistant", "content": "done"}, {"role": "tool", "content": "done"}]
    teach(model, [lesson(tokenizer, asked, CALL), lesson(tokenizer, called, ANSWER)])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
