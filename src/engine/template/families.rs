//! Templates for files without one: those that the families document, chosen by the tokens of their turns.

/// A family, recognised by its tokens.
#[derive(Debug)]
pub(super) struct TemplateFamily {
    pub(super) name: &'static str,
    /// Tokens all of which its vocabulary has.
    tokens: &'static [&'static str],
    pub(super) template: &'static str,
}

/// The first family whose tokens are all there is chosen.
static FAMILIES: [TemplateFamily; 12] = [
    TemplateFamily {
        name: "harmony",
        tokens: &["<|start|>", "<|message|>", "<|channel|>", "<|return|>"],
        template: "{% for m in messages %}<|start|>{{ 'developer' if m.role == 'system' else m.role }}\
            {% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}\
            {% if add_generation_prompt %}<|start|>assistant{% endif %}",
    },
    TemplateFamily {
        name: "chatml",
        tokens: &["<|im_start|>", "<|im_end|>"],
        template: "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
            {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    },
    TemplateFamily {
        name: "llama 3",
        tokens: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        template: "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n\
            {{ m.content | trim }}<|eot_id|>{% endfor %}\
            {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    },
    TemplateFamily {
        name: "gemma",
        tokens: &["<start_of_turn>", "<end_of_turn>"],
        template: "{{ bos_token }}{% for m in messages %}\
            {% if m.role == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}\
            <start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n\
            {{ m.content | trim }}<end_of_turn>\n{% endfor %}\
            {% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    },
    TemplateFamily {
        name: "gemma 4",
        tokens: &["<|turn>", "<turn|>"],
        template: "{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n\
            {{ m.content | trim }}<turn|>\n{% endfor %}\
            {% if add_generation_prompt %}<|turn>model\n{% endif %}",
    },
    TemplateFamily {
        name: "mistral",
        tokens: &["[INST]", "[/INST]"],
        template: "{{ bos_token }}{% for m in messages %}\
            {% if m.role == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}\
            {% if m.role == 'user' %}[INST] {{ m.content }}[/INST]\
            {% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    },
    TemplateFamily {
        name: "glm 4",
        tokens: &["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"],
        template: "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}\
            {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    },
    TemplateFamily {
        name: "phi 3",
        tokens: &["<|user|>", "<|assistant|>", "<|end|>"],
        template: "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}\
            {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    },
    TemplateFamily {
        name: "zephyr",
        tokens: &["<|user|>", "<|assistant|>"],
        template: "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}\
            {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    },
    TemplateFamily {
        name: "granite",
        tokens: &["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"],
        template: "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n\
            {% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
    },
    TemplateFamily {
        name: "command r",
        tokens: &["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"],
        template: "{{ bos_token }}{% set tokens = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}\
            {% for m in messages %}<|START_OF_TURN_TOKEN|><|{{ tokens[m.role] }}_TOKEN|>{{ m.content | trim }}\
            <|END_OF_TURN_TOKEN|>{% endfor %}\
            {% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
    },
    TemplateFamily {
        name: "deepseek",
        tokens: &["<｜User｜>", "<｜Assistant｜>"],
        template: "{{ bos_token }}{% for m in messages %}\
            {% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}<｜User｜>{{ m.content }}\
            {% else %}<｜Assistant｜>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}\
            {% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
    },
];

/// The family that a vocabulary belongs to.
pub(super) fn family_of<'a>(tokens: impl Iterator<Item = &'a str>) -> Option<&'static TemplateFamily> {
    let mut found: Vec<&str> =
        tokens.filter(|token| FAMILIES.iter().any(|family| family.tokens.contains(token))).collect();
    found.sort_unstable();
    FAMILIES.iter().find(|family| family.tokens.iter().all(|token| found.binary_search(token).is_ok()))
}

#[cfg(test)]
pub(super) fn all() -> &'static [TemplateFamily] {
    &FAMILIES
}
