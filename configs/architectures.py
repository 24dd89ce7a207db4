"""The reference's architectures, by its names; what they leave out has its defaults.

Sizes are those of fairseq's transformer_legacy.py, transformer_lm.py and roberta/model.py; Llama's
are its own. A config takes one and changes what differs.
"""

# What the reference's architectures do not know, switched off.
_OURS = {
    "drop_path": 0.0,
    "drop_path_rows": "all",
    "drop_block": 0.0,
    "drop_block_size": 4,
    "drop_connect": 0.0,
    "dtype": "float32",
    "saved": "dots",
    "share_layers": 1,
    "exit_maps": False,
    "exit_place": "before_norm",
    "attention": "auto",
}


def _seq2seq(embed_dim, ffn_dim, heads, encoder_layers, decoder_layers, dropout, attention_dropout):
    return {
        "embed_dim": embed_dim,
        "ffn_dim": ffn_dim,
        "attention_heads": heads,
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers,
        "norm": "post",
        "activation": "relu",
        "dropout": dropout,
        "attention_dropout": attention_dropout,
        "activation_dropout": 0.0,
        **_OURS,
        "share_embeddings": "none",
        "positions": "sinusoidal",
        "scale_embeddings": True,
        "embedding_norm": False,
        "max_source_length": 1024,
        "max_target_length": 1024,
    }


transformer_wmt_en_de = _seq2seq(512, 2048, 8, 6, 6, 0.1, 0.0)
transformer_iwslt_de_en = _seq2seq(512, 1024, 4, 6, 6, 0.1, 0.0)
transformer_vaswani_wmt_en_de_big = _seq2seq(1024, 4096, 16, 6, 6, 0.3, 0.0)
transformer_wmt_en_de_big = _seq2seq(1024, 4096, 16, 6, 6, 0.3, 0.1)
transformer_wmt_en_de_big_t2t = _seq2seq(1024, 4096, 16, 6, 6, 0.3, 0.1) | {
    "norm": "pre",
    "activation_dropout": 0.1,
}
# The depth of the paper's best translation model; the reference has no name for it.
transformer_vaswani_wmt_en_de_big_12_6 = _seq2seq(1024, 4096, 16, 12, 6, 0.3, 0.0)

transformer_lm_wiki103 = {
    "embed_dim": 1024,
    "ffn_dim": 4096,
    "attention_heads": 8,
    "decoder_layers": 16,
    "norm": "pre",
    "final_norm": False,
    "activation": "relu",
    "dropout": 0.3,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    **_OURS,
    "norm_type": "layer",
    "norm_epsilon": 1e-5,
    "biases": "all",
    "kv_heads": 0,
    "head_dim": 0,
    "qk_norm": False,
    "positions": "sinusoidal",
    "rope_theta": 10000.0,
    "scale_embeddings": True,
    "max_length": 3072,
    "tie_embeddings": True,
    "adaptive_cutoffs": "20000,60000",
    "adaptive_factor": 4,
    "tie_projections": True,
    "adaptive_dropout": 0.2,
    "adaptive_buffer": 0.125,
    "adaptive_ignored_targets": False,
    "adaptive_padding_rows": False,
}

# The shape of Llama 3.2 with 1B parameters; the frequencies of its positions are not stretched.
llama_3_2_1b = transformer_lm_wiki103 | {
    "embed_dim": 2048,
    "ffn_dim": 8192,
    "attention_heads": 32,
    "kv_heads": 8,
    "decoder_layers": 16,
    "norm_type": "rms",
    "final_norm": True,
    "activation": "swiglu",
    "biases": "none",
    "positions": "rotary",
    "rope_theta": 500000.0,
    "scale_embeddings": False,
    "max_length": 8192,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "adaptive_cutoffs": "",
    "tie_projections": False,
    "adaptive_dropout": 0.0,
}


def _roberta(embed_dim, ffn_dim, heads, layers):
    return {
        "embed_dim": embed_dim,
        "ffn_dim": ffn_dim,
        "attention_heads": heads,
        "encoder_layers": layers,
        "norm": "post",
        "activation": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.0,
        **_OURS,
        "norm_epsilon": 1e-5,
        "family": "roberta",
        "max_length": 512,
        "num_classes": 0,
        "pooler_dropout": 0.0,
    }


roberta_base = _roberta(768, 3072, 12, 12)
roberta_large = _roberta(1024, 4096, 16, 24)
