//! Recorded digests of the engine's bytes: a change that alters one of them is noticed, and has to raise
//! `KERNEL_VERSION`, so that cached answers of before are not given any more. The digests are the same on
//! every x86-64 machine, for all instructions and numbers of threads.
#![cfg(target_arch = "x86_64")]

use std::path::Path;

use crossbeam_channel::unbounded;
use sha2::{Digest, Sha256};
use steadytext_engine::gguf::Gguf;
use steadytext_engine::template::ChatTemplate;
use steadytext_engine::tokenizer::Tokenizer;
use steadytext_engine::{
    Config, Constraint, Embed, Engine, EventKind, Generate, Instructions, KERNEL_VERSION, KvCacheType,
    Likelihoods, ModelSource, Output, Penalties, Probe, Reply, Request, Rerank, Sampling, Work, hex,
};
use steadytext_test_models::gguf::Value;
use steadytext_test_models::{
    Architecture, Bert, EncoderFamily, Kind, Pooling, Quantization, Spec, Splitter, file, write,
};
use tempfile::TempDir;

/// The version of the kernels that gives the digests below.
const VERSION: i32 = 2;

/// The name of each computation, and the first half of the SHA-256 of its result.
const GOLDEN: [(&str, &str); 73] = [
    ("builtin: logits", "678652d4134f589ca78b70db95ec2397"),
    ("builtin: texts", "690976f250f8e3ecf4eb38d24963b911"),
    ("builtin: embeddings", "8cfc0949722d1986f5a0b2b9dc715ead"),
    ("qwen3 F32", "5864868d526beb786d4361efe138f762"),
    ("qwen3 F16", "e539f43e8c0fadeb87a3cb771fa4f362"),
    ("qwen3 BF16", "124bcb273400de25566c2302fbdb50c6"),
    ("qwen3 Q4_0", "a0ac9f3e4afd7c1cefa8b678290baaf1"),
    ("qwen3 Q4_1", "2b5df94c6ad34a54fa3799c98f5d9aec"),
    ("qwen3 Q5_0", "7980add19adfb057a315e9cadfa079b3"),
    ("qwen3 Q5_1", "fbabf40e271d30f7421b3ac9364d1bb6"),
    ("qwen3 Q8_0", "ce6d9538ef3625c957d2f5ffad8613c0"),
    ("qwen3 Q2_K", "c61836cf1fbb4d3243a9e3094f5554b1"),
    ("qwen3 Q3_K", "52aeeafa1c8fc2354ecaf014ca0d2b8b"),
    ("qwen3 Q4_K", "86543cafbc829be100684807e3a82acf"),
    ("qwen3 Q5_K", "85d8ec356f3f4fa2e80d379327ce528a"),
    ("qwen3 Q6_K", "b2aa9a514b9aabba6212f0162735b47f"),
    ("qwen3 IQ4_NL", "c7e6dcc96a6f8939fba468d7197432be"),
    ("qwen3 IQ4_XS", "d04ef14b41bac8559c4d077f2581aa1d"),
    ("qwen2 Q8_0", "c75fa118e029053ff9a0430dded05a97"),
    ("bert: embeddings", "990d8fb8b1811fd019d24c7587927421"),
    ("nomic-bert", "2c1ff1b05435789913ce940773cef255"),
    ("nomic-bert-moe", "dde53131ccab1a13f4327b7bc4ebfb8d"),
    ("jina-bert-v2", "e12804dd8eeda8190ab3ab712eadb78f"),
    ("jina-bert-v3", "40a2bd0568b12b774da0188776fc7098"),
    ("modern-bert", "c02242ec4383f4ca833558445923a138"),
    ("gemma-embedding", "5cc12253ff593f56a18ef3347509336b"),
    ("bert: ranking", "88d86ff4f886becc6e4c091984e94e9f"),
    ("qwen3: ranking", "aa608f672cf5eec76043e11b7328d02c"),
    ("llama3", "31b68f526f566dfe67c4bb5bea3a279d"),
    ("mixtral", "0caf062bbfc490e65265e1bf961ff466"),
    ("mistral3", "43f07d7de7c98f9fa3c555624523fdb5"),
    ("smollm3", "e10b23145c79d58d38ce550c151dd535"),
    ("qwen3moe", "57701324a4110add2dd3b2d71532fc5c"),
    ("gpt-oss", "829fc9c5bea7fa1592e88c513e360ba3"),
    ("gemma", "2a0b936bb516ecb76705fd4534864d3f"),
    ("gemma2", "9a85037d9ec720a76c7719a3608b69be"),
    ("gemma3", "5098e5505920a121ff4d31c4c87e3d67"),
    ("gemma3n", "d4e4bd03215a8e9103d61afe1ff21329"),
    ("gemma4", "e642426110e8a0f1d9ba3e03400703ae"),
    ("gemma4moe", "1c101899f9eb35ab27be8b9ab3fae109"),
    ("phi3", "c5e1fd1c26c410514a5c57b67dbce3bf"),
    ("granite", "5c67e8d5f98fd10e819a94792618785c"),
    ("granitemoe", "7e8bd20e81b0a3feec196cc461dfaf5e"),
    ("granitehybrid", "ccf8dee7678637c7db235ad682e87c13"),
    ("granitehybridmoe", "2b41172385941b3b9d69bd9f60f3fbb1"),
    ("olmo2", "0d01c977b6dd9d2ecbb95c09b7452672"),
    ("exaone4", "38d730a9dcb83d2a717d70f342085588"),
    ("glm4", "538da3435ef83aa7db54bbb5fef278d8"),
    ("lfm2", "cfaadb1e62b989ac12025c9e1335f204"),
    ("qwen35", "905162b12fd28263e32e03ad34714474"),
    ("qwen35moe", "8824536ec5743e9a421d1480b8cb3607"),
    ("olmoe", "9e18133f6e6d5d964f4e1afec627d11b"),
    ("starcoder2", "7effe1a84a004619b345d97492258ede"),
    ("llama Q4_K_M", "f8474169036db32d69c1e152ca18c7d3"),
    ("builtin: JSON", "0ad62ac5aab185149c1fca1860d72ff2"),
    ("builtin: pattern", "5ada0bd2ce6b478938930401c4567d03"),
    ("builtin: choice", "caf04406c1693053808a7c3bd27f8783"),
    ("bert folder: embeddings", "0a2411b08eb2b433634be507bbcb7cf6"),
    ("words of qwen2", "58bdeb38ecb94eea93640786f7f2d65b"),
    ("words of llama-bpe", "c0961c083f487192e25e58964b8b099b"),
    ("words of gpt-2", "8d23586e922a1bb597cfe96e3679bffe"),
    ("template of ChatML", "2de095d88588760e9e583116df956bcb"),
    ("template with headers", "99130b1169b6fdf8def7b97c0caeaeaf"),
    ("qwen3 MXFP4", "e28cf231fa426debde7d1607955d61dd"),
    ("gpt-oss MXFP4", "7f2e29ea665b300e63acce556057e591"),
    ("builtin: penalties and bias", "9ad5cea11df5bdda21406cf7f756235e"),
    ("qwen3, keys and values Q8_0", "2d3b3d12d6a8b163b03a5b4a9d8fc894"),
    ("gemma4, keys and values Q8_0", "7af5cb28fe705a58b83200ff40cecaa5"),
    ("gpt-oss, keys and values Q8_0", "5f367663bc4e57eb2965d69496839328"),
    ("builtin: likelihoods", "af8d0c6ce40974e17cdfbc6d231f33e6"),
    ("qwen35: likelihoods", "941829c3326757ac975474de51034bd7"),
    ("qwen3 TQ1_0", "5592eee03dc87418fce4eb762808cd65"),
    ("qwen3 TQ2_0", "5592eee03dc87418fce4eb762808cd65"),
];

/// Logits after each of some tokens.
fn logits(model: &ModelSource, vocab: u32, set: Instructions, kind: KvCacheType) -> Vec<u8> {
    let mut probe = Probe::open_keeping(model, threads(), set, kind, false).unwrap();
    let tokens: Vec<u32> = (0..150).map(|i| (i * 7919 + i * i * 31) % vocab).collect();
    let mut bytes = Vec::new();
    for pass in tokens.chunks(70) {
        probe
            .extend_each(pass, |logits| bytes.extend(logits.iter().flat_map(|logit| logit.to_le_bytes())))
            .unwrap();
    }
    bytes
}

/// The outputs of some work, computed together.
fn outputs(model: &ModelSource, works: Vec<Work>, set: Instructions) -> Vec<u8> {
    let config = Config { threads: threads(), nice: 0, instructions: set, ..Config::default() };
    let engine = Engine::start(config).unwrap();
    let (sender, events) = unbounded();
    let count = works.len();
    for (key, work) in works.into_iter().enumerate() {
        let request = Request { key: key as u64, model: model.clone(), salt: 0, dedup_key: None, work };
        engine.submit(request, Reply::new(sender.clone()));
    }
    let mut outputs = vec![Vec::new(); count];
    let mut ended = 0;
    while ended < count {
        let event = events.recv().unwrap();
        let bytes = match event.kind {
            EventKind::Done(Output::Text { text, .. }) => text.into_bytes(),
            EventKind::Done(Output::Embedding(vector)) => {
                vector.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            EventKind::Done(Output::Score(score)) => score.to_le_bytes().into(),
            EventKind::Done(Output::LogProbabilities(values)) => {
                values.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            EventKind::Done(Output::Tokens(_) | Output::Chunks(_) | Output::Verification(_)) => {
                panic!("nothing asks for these")
            }
            EventKind::Failed(error) => panic!("{error}"),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => continue,
        };
        outputs[event.key as usize] = bytes;
        ended += 1;
    }
    outputs.concat()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn generate(prompt: &str, sampling: Sampling, constraint: Option<Constraint>) -> Work {
    Work::Generate(Generate {
        prompt: prompt.to_owned(),
        max_tokens: 48,
        sampling,
        stop: Vec::new(),
        constraint,
        ..Generate::default()
    })
}

fn computed(set: Instructions) -> Vec<(&'static str, String)> {
    let directory = TempDir::new().unwrap();
    let made = |name: &str, spec: &Spec| {
        let path = directory.path().join(name);
        write(spec, &path).unwrap();
        ModelSource::File(path)
    };
    let logits_with = |model: &ModelSource, kind| logits(model, 600, set, kind);
    let logits = |model: &ModelSource, vocab| logits(model, vocab, set, KvCacheType::F16);
    let outputs = |model: &ModelSource, works| outputs(model, works, set);
    let mut results = Vec::new();
    let mut add = |name, bytes: Vec<u8>| results.push((name, hex(&Sha256::digest(bytes)[..16])));

    let builtin = ModelSource::Builtin;
    add("builtin: logits", logits(&builtin, 6144));
    let some = Sampling { temperature: 1.2, top_k: 20, min_p: 0.02, seed: 8, ..Sampling::default() };
    let warm = Sampling { temperature: 0.8, top_p: 0.9, seed: 7, ..Sampling::default() };
    add(
        "builtin: texts",
        outputs(
            &builtin,
            vec![
                generate("What does VACUUM do?", Sampling::default(), None),
                generate("What is the syntax of CREATE INDEX?", warm.clone(), None),
                generate("What is the syntax of CREATE INDEX?", some, None),
                generate(
                    "Yes or no?",
                    Sampling::default(),
                    Some(Constraint::Choice(vec!["yes".into(), "no".into()])),
                ),
            ],
        ),
    );
    let texts = ["hello", "An index is a structure.", ""].map(|text| format!("{text} work_mem"));
    add(
        "builtin: embeddings",
        outputs(&builtin, texts.map(|text| Work::Embed(Embed::passage(&text))).into()),
    );
    for (name, kind) in [
        ("qwen3 F32", Kind::F32),
        ("qwen3 F16", Kind::F16),
        ("qwen3 BF16", Kind::BF16),
        ("qwen3 Q4_0", Kind::Q4_0),
        ("qwen3 Q4_1", Kind::Q4_1),
        ("qwen3 Q5_0", Kind::Q5_0),
        ("qwen3 Q5_1", Kind::Q5_1),
        ("qwen3 Q8_0", Kind::Q8_0),
        ("qwen3 Q2_K", Kind::Q2K),
        ("qwen3 Q3_K", Kind::Q3K),
        ("qwen3 Q4_K", Kind::Q4K),
        ("qwen3 Q5_K", Kind::Q5K),
        ("qwen3 Q6_K", Kind::Q6K),
        ("qwen3 IQ4_NL", Kind::IQ4NL),
        ("qwen3 IQ4_XS", Kind::IQ4XS),
    ] {
        add(name, logits(&made(name, &Spec::wide(Architecture::Qwen3, Quantization::uniform(kind))), 600));
    }
    add(
        "qwen2 Q8_0",
        logits(&made("qwen2", &Spec::wide(Architecture::Qwen2, Quantization::uniform(Kind::Q8_0))), 600),
    );
    let encoder = |name: &str, labels| {
        let path = directory.path().join(name);
        Bert { labels, ..Bert::default() }.write(&path).unwrap();
        ModelSource::File(path)
    };
    let texts = ["reclaim storage", "a b c"].map(|text| Work::Embed(Embed::passage(text)));
    add("bert: embeddings", outputs(&encoder("bert", 0), texts.into()));
    for family in EncoderFamily::OTHERS {
        let path = directory.path().join(family.name());
        Bert { family, layers: 4, ..Bert::default() }.write(&path).unwrap();
        let long = Work::Embed(Embed::passage("reclaim storage, and then some more of it ".repeat(6)));
        add(family.name(), outputs(&ModelSource::File(path), vec![long]));
    }
    let rank = || {
        Work::Rerank(Rerank {
            query: "a b".into(),
            document: "b c d".into(),
            task: "find".into(),
            ..Rerank::default()
        })
    };
    add("bert: ranking", outputs(&encoder("ranking bert", 1), vec![rank()]));
    let judge = Spec { rerank: Some(steadytext_test_models::Rerank::YesNo), ..Spec::default() };
    add("qwen3: ranking", outputs(&made("judge", &judge), vec![rank()]));
    for family in Architecture::ALL {
        if !matches!(family, Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3) {
            let spec = Spec::wide(family, Quantization::uniform(Kind::Q8_0));
            add(family.variant(), logits(&made(family.variant(), &spec), 600));
        }
    }
    add(
        "llama Q4_K_M",
        logits(&made("llama", &Spec::wide(Architecture::Llama, Quantization::q4_k_m())), 600),
    );
    let (some, constrained) = (Sampling { temperature: 1.0, seed: 3, ..Sampling::default() }, constrained());
    for (name, constraint) in constrained {
        let works = [Sampling::default(), some.clone()]
            .map(|sampling| generate("Which one?", sampling, Some(constraint.clone())));
        add(name, outputs(&builtin, works.into()));
    }
    let folder = directory.path().join("folder");
    Bert { pooling: Pooling::Cls, ..Bert::default() }.write_folder(&folder).unwrap();
    let texts = [NASTY, "reclaim storage"].map(|text| Work::Embed(Embed::passage(text)));
    add("bert folder: embeddings", outputs(&ModelSource::File(folder), texts.into()));
    for (name, splitter) in [
        ("words of qwen2", Splitter::Qwen2),
        ("words of llama-bpe", Splitter::LlamaBpe),
        ("words of gpt-2", Splitter::Gpt2),
    ] {
        add(name, words(&directory.path().join(name), splitter));
    }
    for (name, template) in [("template of ChatML", CHATML), ("template with headers", HEADERS)] {
        add(name, prompt(&directory.path().join(name), template));
    }
    for (name, architecture, quantization) in [
        ("qwen3 MXFP4", Architecture::Qwen3, Quantization::uniform(Kind::MXFP4)),
        ("gpt-oss MXFP4", Architecture::GptOss, Quantization::mxfp4()),
    ] {
        add(name, logits(&made(name, &Spec::wide(architecture, quantization)), 600));
    }
    let penalties = Penalties { repeat: 1.5, presence: 3.0, frequency: 2.5 };
    let logit_bias = vec![(17, -50.0), (300, 12.0)];
    let samplings = [
        Sampling { penalties, ..Sampling::default() },
        Sampling { penalties, ..warm },
        Sampling { logit_bias, ..Sampling::default() },
    ];
    let works = samplings.map(|sampling| generate("What does VACUUM do?", sampling, None));
    add("builtin: penalties and bias", outputs(&builtin, works.into()));
    for (name, architecture) in [
        ("qwen3, keys and values Q8_0", Architecture::Qwen3),
        ("gemma4, keys and values Q8_0", Architecture::Gemma4),
        ("gpt-oss, keys and values Q8_0", Architecture::GptOss),
    ] {
        let spec = Spec::wide(architecture, Quantization::uniform(Kind::Q8_0));
        add(name, logits_with(&made(name, &spec), KvCacheType::Q8_0));
    }
    let likelihoods = |prompt: &str, begin: &str| {
        let answers =
            ["VACUUM", "VACUUM FULL", "VACUUM FREEZE", "ANALYZE", "Österreich", "a"].map(str::to_owned);
        let (prompt, begin) = (prompt.to_owned(), begin.to_owned());
        Work::Likelihoods(Likelihoods { prompt, begin, answers: answers.into(), ..Likelihoods::default() })
    };
    let works = || vec![likelihoods("Which one?", ""), likelihoods("What reclaims storage?", "It is")];
    add("builtin: likelihoods", outputs(&builtin, works()));
    let spec = Spec::wide(Architecture::Qwen35, Quantization::uniform(Kind::Q8_0));
    add("qwen35: likelihoods", outputs(&made("likelihoods", &spec), works()));
    for (name, kind) in [("qwen3 TQ1_0", Kind::TQ1_0), ("qwen3 TQ2_0", Kind::TQ2_0)] {
        add(name, logits(&made(name, &Spec::wide(Architecture::Qwen3, Quantization::uniform(kind))), 600));
    }
    results
}

/// Constraints for answers.
fn constrained() -> [(&'static str, Constraint); 3] {
    let schema = r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "kind": {"enum": ["a", "bé"]},
        "count": {"type": "integer", "minimum": -3, "maximum": 1200}}, "required": ["name", "kind", "count"],
        "additionalProperties": false}"#;
    [
        ("builtin: JSON", Constraint::Json(schema.to_owned())),
        ("builtin: pattern", Constraint::Regex("[A-Z]\\w{3,8}( (é|ß|\\d{2}))*[.!]".to_owned())),
        ("builtin: choice", Constraint::Choice(vec!["VACUUM".into(), "ANALYZE".into(), "Österreich".into()])),
    ]
}

/// A text that the splitters of vocabularies cut in different ways.
const NASTY: &str = "It's we'LL  1234567 (abc)\tab\r\n\n  x\u{a0}y \u{2003}z\u{3000}\u{e9}e\u{301} \u{1f469}\u{200d}\u{1f4bb} \u{17f}'\u{17f} \
    \u{4f60}\u{597d}\u{ff11}\u{ff12} \u{661}\u{662} ---a  \n \nab12ab '\u{130}i <|im_start|> 12,345.67\u{feff}end ";

/// Token ids of [`NASTY`] by a vocabulary that shows where words end: it has merges across the borders of
/// each splitter.
fn words(path: &Path, splitter: Splitter) -> Vec<u8> {
    let spec = Spec { splitter, vocab: 700, ..Spec::default() };
    let mut made = file(&spec).unwrap();
    let merges = [
        ("1", "2"),
        ("3", "4"),
        ("12", "3"),
        ("12", "34"),
        ("4", "5"),
        ("5", "6"),
        ("45", "6"),
        ("6", "7"),
        ("(", "a"),
        ("Ġ", "("),
        ("Ġ(", "a"),
        ("b", ")"),
        ("Ċ", "Ċ"),
        ("č", "Ċ"),
        ("Ġ", "Ġ"),
        ("ĠĠ", "x"),
        ("'", "L"),
        ("'L", "L"),
        ("'", "s"),
        ("t", "'"),
        ("-", "-"),
        ("-", "a"),
        ("ĉ", "a"),
        ("Ġ", "1"),
        ("Ġ", "'"),
        ("b", "1"),
    ];
    for (key, value) in &mut made.keys {
        match (key.as_str(), value) {
            ("tokenizer.ggml.tokens", Value::Strings(tokens)) => {
                let first = tokens.len() - merges.len();
                // In place of words, whose own merges are removed as well.
                for ((left, right), token) in merges.iter().zip(&mut tokens[first..]) {
                    *token = format!("{left}{right}");
                }
            }
            ("tokenizer.ggml.merges", Value::Strings(all)) => {
                all.truncate(all.len() - merges.len());
                all.extend(merges.iter().map(|(left, right)| format!("{left} {right}")));
            }
            _ => {}
        }
    }
    made.write(&mut std::fs::File::create(path).unwrap()).unwrap();
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(path).unwrap()).unwrap();
    let ids = tokenizer.encode(NASTY).unwrap();
    assert_eq!(
        tokenizer.decode(&ids).len(),
        NASTY.chars().filter(char::is_ascii).count(),
        "what answers may say"
    );
    ids.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// In the manner of Qwen's: a system message where there is none, thoughts that are stripped, a loop
/// backwards.
const CHATML: &str = r#"{%- if messages[0].role != 'system' or not messages[0].content %}{{- '<|im_start|>system\nYou are ' + 'helpful'|capitalize + '.<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" and message.content is string and not message.content.startswith('<tool_response>') %}
        {%- set ns.open = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' and not message.content %}{% continue %}{% endif %}
    {%- if message.role in ['user', 'system'] or loop.first %}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>' ~ '\n' }}
    {%- elif '</think>' in message.content %}
        {{- message.content.split('</think>')[-1].lstrip('\n') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"#;

/// In the manner of Llama's: headers, trimmed messages, a date, a macro.
const HEADERS: &str = r#"{%- macro header(role) -%}<|im_start|>{{ role }}|{{ role|length }}

{% endmacro -%}
{%- if not date is defined %}{%- set date = "26 Jul 2024" %}{%- endif %}
{{- header('system') }}{{- "Today: " + date|upper|replace('JUL', 'July') + "\n" }}{{- '<|im_end|>' }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}{{- raise_exception("no tools") }}{%- endif %}
    {{- header(message['role']) + message['content']|trim + '<|im_end|>' }}
    {%- if not loop.last %}{{- '\n\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- header('assistant') }}{%- endif %}"#;

/// Token ids of a prompt in a template.
fn prompt(path: &Path, template: &str) -> Vec<u8> {
    let spec = Spec { chat_template: Some(template.to_owned()), ..Spec::default() };
    write(&spec, path).unwrap();
    let gguf = Gguf::open(path).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let ids =
        ChatTemplate::from_gguf(&gguf).unwrap().encode_prompt(&tokenizer, "  Hi <|im_end|> there\n").unwrap();
    ids.into_iter().flat_map(u32::to_le_bytes).collect()
}

#[test]
fn the_bytes_are_those_of_the_kernel_version() {
    assert_eq!(KERNEL_VERSION, VERSION, "compute the digests anew");
    for set in [Instructions::Avx512, Instructions::Avx2, Instructions::Portable] {
        let computed = computed(set);
        let list: String =
            computed.iter().map(|(name, digest)| format!("    (\"{name}\", \"{digest}\"),\n")).collect();
        assert!(
            computed.iter().map(|(name, digest)| (*name, digest.as_str())).eq(GOLDEN),
            "with {set:?} the engine computes other bytes than those of kernel version {VERSION}: if they are right, raise \
             KERNEL_VERSION and write here all of what follows, or append the new line where only the line of a new family was \
             added\n{list}"
        );
    }
}
