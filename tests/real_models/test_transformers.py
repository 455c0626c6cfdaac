"""What only transformers do: tie weights, save themselves for stock code, generate."""

import copy

import pytest
import torch

from negdiag_param import plain_state_dict, register_negative_diagonal, remove_negative_diagonal
from tests.real_models.models import MODELS, gpt2, retrofitted, tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration("transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_gpt2_ties_its_head_to_its_embedding():
    module = gpt2()
    before = module.lm_head.weight.clone()
    for pattern in ("*", "lm_head.weight", "transformer.wte.weight"):
        with pytest.raises(ValueError, match="tied") as error:
            register_negative_diagonal(module, pattern)
        assert "lm_head.weight" in str(error.value)
        assert "transformer.wte.weight" in str(error.value)
    assert torch.equal(module.lm_head.weight, before)
    assert module.lm_head.weight is module.transformer.wte.weight
    register_negative_diagonal(module, "transformer.h.*.c_fc.weight")
    assert module.lm_head.weight is module.transformer.wte.weight


def test_a_model_saves_itself_for_stock_code(tmp_path):
    from transformers import BertModel

    module = retrofitted(MODELS["bert"]).eval()
    module.save_pretrained(tmp_path, state_dict=plain_state_dict(module))
    stock = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    x = tokens()
    torch.testing.assert_close(stock(x).last_hidden_state, module(x).last_hidden_state)


def test_generation_uses_the_mapped_weights():
    module = retrofitted(MODELS["gpt2"]).eval()
    baked = remove_negative_diagonal(copy.deepcopy(module), MODELS["gpt2"].pattern)
    arguments = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    x = tokens()
    mask = torch.ones_like(x)
    found = module.generate(x, attention_mask=mask, **arguments)
    assert torch.equal(found, baked.generate(x, attention_mask=mask, **arguments))
