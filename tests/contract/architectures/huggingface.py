"""Architectures of the package transformers, from configuration with random weights; nothing is downloaded."""

import torch
import transformers
from registry import architecture
from torch import nn

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 13}
DECODER = {**SMALL, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 16, "pad_token_id": 0}
VISION = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "image_size": 8,
    "patch_size": 4, "num_channels": 3,
}  # fmt: skip


class Outputs(nn.Module):
    """A model of transformers that returns one tensor: three features, averaged over positions."""

    def __init__(self, model, **options):
        super().__init__()
        self.model, self.options = model, options

    def forward(self, x):
        """Return [N, 3]."""
        out = self.model(x, return_dict=True, **self.options)
        for name in ("logits", "last_hidden_state", "image_embeds"):
            if getattr(out, name, None) is not None:
                out = getattr(out, name)
                break
        return (out.mean((2, 3)) if out.dim() == 4 else out.mean(1) if out.dim() == 3 else out)[:, :3]


def randomise(model):
    """Give every parameter and statistic a random value, since many begin at zero or one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) / max(1, parameter.shape[-1]) ** 0.5)
    return model


def text(name, config, model=None, settings=SMALL, **options):
    """Enter a model of tokens: the configuration's class, the model's class, and settings beside the small ones."""

    def make():
        chosen = getattr(transformers, config)(**settings, **options)
        made = getattr(transformers, model or config.replace("Config", "Model"))(chosen)
        return Outputs(randomise(made), **({"use_cache": False} if settings is DECODER else {}))

    architecture(name, (5,), tokens=13)(make)


def vision(name, config, model=None, settings=VISION, **options):
    """Enter a model of images."""

    def make():
        chosen = getattr(transformers, config)(**settings, **options)
        return Outputs(randomise(getattr(transformers, model or config.replace("Config", "Model"))(chosen)))

    architecture(name, (3, 8, 8))(make)


text("BERT", "BertConfig")
text("BERT, eager attention", "BertConfig", attn_implementation="eager")
text("BERT with a classifier", "BertConfig", "BertForSequenceClassification", num_labels=3)
text("RoBERTa", "RobertaConfig", max_position_embeddings=16, pad_token_id=1)
text("ALBERT", "AlbertConfig", embedding_size=6)
text("ELECTRA", "ElectraConfig", embedding_size=6)
text("DeBERTa-v2", "DebertaV2Config", relative_attention=True, pos_att_type=["p2c", "c2p"], max_position_embeddings=16)
text(
    "DistilBERT",
    "DistilBertConfig",
    settings={"vocab_size": 13, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12},
)
text("MPNet", "MPNetConfig", max_position_embeddings=16)
text(
    "SqueezeBERT",
    "SqueezeBertConfig",
    embedding_size=8,
    q_groups=1,
    k_groups=1,
    v_groups=1,
    post_attention_groups=1,
    intermediate_groups=1,
    output_groups=1,
)
text(
    "FNet (transformers)",
    "FNetConfig",
    settings={"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 12},
)
text("ModernBERT", "ModernBertConfig", pad_token_id=0, global_attn_every_n_layers=1, local_attention=4)
text("BART encoder and decoder", "BartConfig", settings={
    "vocab_size": 13, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12, "max_position_embeddings": 16,
})  # fmt: skip
text(
    "T5 encoder",
    "T5Config",
    "T5EncoderModel",
    settings={"vocab_size": 13, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2},
)
text("GPT-2", "GPT2Config", settings={"vocab_size": 13, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16})
text("GPT-NeoX", "GPTNeoXConfig", settings=DECODER)
text("GPT-Neo", "GPTNeoConfig", settings={
    "vocab_size": 13, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 16,
    "window_size": 4,
    "attention_types": [[["global", "local"], 1]],
})  # fmt: skip
text("OPT", "OPTConfig", settings={**SMALL, "ffn_dim": 12, "word_embed_proj_dim": 8, "max_position_embeddings": 16})
text("BLOOM", "BloomConfig", settings={"vocab_size": 13, "hidden_size": 8, "n_layer": 1, "n_head": 2})
text("Falcon", "FalconConfig", settings={**SMALL, "alibi": False})
text("LLaMA", "LlamaConfig", settings=DECODER)
text("LLaMA with a head", "LlamaConfig", "LlamaForCausalLM", settings=DECODER, tie_word_embeddings=True)
text("Mistral", "MistralConfig", settings=DECODER, sliding_window=3)
text("Qwen2", "Qwen2Config", settings=DECODER)
text("Qwen3", "Qwen3Config", settings=DECODER)
text("Gemma", "GemmaConfig", settings=DECODER)
text("Gemma 2", "Gemma2Config", settings=DECODER)
text("Phi", "PhiConfig", settings={**DECODER, "partial_rotary_factor": 0.5})
text("OLMo", "OlmoConfig", settings=DECODER)
text("StableLM", "StableLmConfig", settings=DECODER)
text("Cohere", "CohereConfig", settings=DECODER)
text(
    "Mixtral (experts)",
    "MixtralConfig",
    settings=DECODER,
    num_local_experts=3,
    num_experts_per_tok=2,
    experts_implementation="eager",
)
text(
    "Qwen3 with experts",
    "Qwen3MoeConfig",
    settings=DECODER,
    num_experts=3,
    num_experts_per_tok=1,
    moe_intermediate_size=6,
    decoder_sparse_step=1,
    experts_implementation="eager",
)
text("DeepSeek-V3 (latent attention, experts)", "DeepseekV3Config", settings={
    **SMALL, "moe_intermediate_size": 6, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 0, "kv_lora_rank": 4, "q_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 4, "n_shared_experts": 1, "num_key_value_heads": 2, "experts_implementation": "eager",
})  # fmt: skip
text(
    "Mamba (transformers)",
    "MambaConfig",
    settings={"vocab_size": 13, "hidden_size": 8, "state_size": 3, "num_hidden_layers": 1, "use_cache": False},
)
text("Mamba 2", "Mamba2Config", settings={
    "vocab_size": 13, "hidden_size": 8, "state_size": 4, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 4,
    "n_groups": 1, "chunk_size": 4, "use_cache": False,
})  # fmt: skip
text(
    "RWKV",
    "RwkvConfig",
    settings={
        "vocab_size": 13,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "attention_hidden_size": 8,
        "intermediate_size": 12,
        "use_cache": False,
    },
)
text(
    "xLSTM (transformers)",
    "xLSTMConfig",
    settings={
        "vocab_size": 13,
        "hidden_size": 16,
        "num_blocks": 1,
        "num_heads": 2,
        "use_cache": False,
        "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native",
        "step_kernel": "native",
    },
)
text(
    "RecurrentGemma (Griffin)",
    "RecurrentGemmaConfig",
    settings={
        **SMALL,
        "lru_width": 8,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "attention_window_size": 4,
        "num_hidden_layers": 3,
    },
)

vision("ViT", "ViTConfig")
vision("DeiT", "DeiTConfig")
vision("BEiT", "BeitConfig")
vision("DINOv2", "Dinov2Config")
vision("DINOv2 with registers", "Dinov2WithRegistersConfig")
vision("CLIP vision", "CLIPVisionConfig", "CLIPVisionModel")
vision("SigLIP vision", "SiglipVisionConfig", "SiglipVisionModel")
vision(
    "Swin",
    "SwinConfig",
    settings={
        "image_size": 8,
        "patch_size": 2,
        "embed_dim": 4,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 2,
    },
)
vision(
    "Swin V2",
    "Swinv2Config",
    settings={
        "image_size": 8,
        "patch_size": 2,
        "embed_dim": 4,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 2,
    },
)
vision(
    "ConvNeXt (transformers)",
    "ConvNextConfig",
    settings={"num_stages": 2, "hidden_sizes": [4, 6], "depths": [1, 1], "patch_size": 2},
)
vision(
    "ConvNeXt V2",
    "ConvNextV2Config",
    settings={"num_stages": 2, "hidden_sizes": [4, 6], "depths": [1, 1], "patch_size": 2},
)
vision(
    "ResNet (transformers)", "ResNetConfig", settings={"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
)
vision(
    "RegNet (transformers)",
    "RegNetConfig",
    settings={"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "groups_width": 2},
)
vision("MobileNetV1", "MobileNetV1Config", settings={"image_size": 8, "depth_multiplier": 0.125, "min_depth": 2})
vision("MobileViT", "MobileViTConfig", settings={
    "image_size": 8, "patch_size": 1, "hidden_sizes": [6, 6, 6], "neck_hidden_sizes": [4, 4, 4, 4, 4, 4, 6],
    "num_attention_heads": 2,
})  # fmt: skip
vision("EfficientNet (transformers)", "EfficientNetConfig", settings={
    "image_size": 8, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "num_blocks": 2,
    "kernel_sizes": [3, 3], "in_channels": [32, 16], "out_channels": [16, 8], "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2], "depthwise_padding": [], "depth_divisor": 4,
})  # fmt: skip
vision("PoolFormer (transformers)", "PoolFormerConfig", settings={
    "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [4, 6], "patch_sizes": [3, 3],
    "strides": [2, 2], "padding": [1, 1],
})  # fmt: skip
vision("SegFormer", "SegformerConfig", settings={
    "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [4, 6], "sr_ratios": [2, 1],
    "num_attention_heads": [1, 2],
    "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2],
})  # fmt: skip


def _audio(name, config, **options):
    def make():
        chosen = getattr(transformers, config)(**options)
        return Outputs(randomise(getattr(transformers, config.replace("Config", "Model"))(chosen)))

    architecture(name, (64,))(make)


AUDIO = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "conv_dim": [4, 4],
    "conv_stride": [4, 2], "conv_kernel": [8, 2], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
}  # fmt: skip
_audio("wav2vec 2.0", "Wav2Vec2Config", **AUDIO)
_audio("HuBERT", "HubertConfig", **AUDIO)
_audio("WavLM", "WavLMConfig", **AUDIO, num_buckets=8, max_bucket_distance=16)


@architecture("Mixtral (experts, grouped products)", (5,), tokens=13)
def mixtral_grouped():
    config = transformers.MixtralConfig(**DECODER, num_local_experts=3, num_experts_per_tok=2)
    return Outputs(randomise(transformers.MixtralModel(config)), use_cache=False)
