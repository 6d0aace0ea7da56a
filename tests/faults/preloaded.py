"""What a build imports when it comes to it, imported beforehand: processes that are forked from here start at once."""

import faults.serving  # noqa: F401
import matplotlib.figure  # noqa: F401
import sklearn.linear_model  # noqa: F401
import uvicorn  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

import sae_runtime.build.pipeline  # noqa: F401
