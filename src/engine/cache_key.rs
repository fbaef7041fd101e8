//! The key under which the result of a request is kept.
//!
//! A request with default parameters has the key that SteadyText gives it: the prompt, or
//! `{prompt}::EOS::{eos_string}`; for an embedding the SHA-256 of `embed:{text}` in hexadecimal digits. Every
//! other one has
//!
//! ```text
//! steadytext/1:  followed by the SHA-256, in hexadecimal digits, of
//!   request type | SHA-256 of the model's file | kernel version | the work as JSON
//! ```
//!
//! each of the four preceded by its length in bytes (64 bits, little-endian), the [kernel
//! version](BackendKind::kernel_version) of the backend as 32 bits, little-endian. The work is the request as
//! the engine gets it, defaults filled in, without what cannot change a byte: at temperature 0, seed and
//! filters.
//!
//! Invariant: two requests that can differ in one byte of their results have different keys, as long as the
//! model is the same; a short key does not name the model, so who keeps results compares it on a hit.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{BackendKind, Embed, Generate, Purpose, Sampling, Work};

/// Tokens of a generation at most that SteadyText's own key stands for.
const DEFAULT_MAX_TOKENS: usize = 512;
const SEPARATOR: &str = "::EOS::";
const PREFIX: &str = "steadytext/1:";

/// The key of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheKey {
    /// The key itself.
    pub text: String,
    /// Whether it is SteadyText's own, which does not name the model.
    pub is_short: bool,
}

impl CacheKey {
    /// SHA-256 of the key.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(&self.text).into()
    }
}

/// The key of a request. `names_model` says whether it chose its model by name or size; `model` is the
/// checksum of the model that will answer, without which there are short keys only, and `backend` computes
/// it.
pub fn cache_key(
    request_type: &str,
    work: &Work,
    names_model: bool,
    model: Option<&[u8; 32]>,
    backend: BackendKind,
) -> Option<CacheKey> {
    if let Some(text) = (!names_model).then(|| short_key(request_type, work)).flatten() {
        return Some(CacheKey { text, is_short: true });
    }
    cache_key_of_many(request_type, &canonical(work), model?, backend)
}

/// The key of a request that is work for the engine many times over. `content` is all that its result depends
/// on, besides the model.
pub fn cache_key_of_many<T: Serialize>(
    request_type: &str,
    content: &T,
    model: &[u8; 32],
    backend: BackendKind,
) -> Option<CacheKey> {
    let content = serde_json::to_vec(content).ok()?;
    let kernels = backend.kernel_version().to_le_bytes();
    let digest = digest(&[request_type.as_bytes(), model, &kernels, &content]);
    Some(CacheKey { text: format!("{PREFIX}{}", hex(&digest)), is_short: false })
}

/// The deduplication key of work ([`crate::Request::dedup_key`]): the same for equal work of a scope, such as
/// a database, by the same backend and version.
pub fn dedup_key(scope: u32, work: &Work, backend: BackendKind) -> Option<[u8; 32]> {
    let work = serde_json::to_vec(&canonical(work)).ok()?;
    Some(digest(&[&scope.to_le_bytes(), &backend.kernel_version().to_le_bytes(), &work]))
}

/// SHA-256 over parts and their lengths.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// SteadyText's key, where it can be told from that of any other request.
fn short_key(request_type: &str, work: &Work) -> Option<String> {
    // A new field of a request has to be looked at here.
    match (request_type, work) {
        (
            "generate",
            Work::Generate(Generate {
                prompt,
                max_tokens,
                sampling,
                stop,
                constraint: None,
                system: None,
                history,
                thinking: false,
            }),
        ) => {
            let is_plain = sampling.is_greedy() && sampling.takes_logits_as_they_are();
            if *max_tokens != DEFAULT_MAX_TOKENS || !is_plain || !history.is_empty() {
                return None;
            }
            let (key, end_of_prompt) = match &stop[..] {
                [] => (prompt.clone(), None),
                [stop] => (format!("{prompt}{SEPARATOR}{stop}"), Some(prompt.len())),
                _ => return None,
            };
            // Read from the left, there is one way to take a key apart.
            (key.find(SEPARATOR) == end_of_prompt && !is_digest(&key) && !is_long_key(&key)).then_some(key)
        }
        (
            "embed",
            Work::Embed(Embed {
                text,
                purpose: Purpose::Passage,
                truncate: false,
                prompt: None,
                dimensions: None,
            }),
        ) => {
            let hash = Sha256::new().chain_update("embed:").chain_update(text).finalize();
            Some(hex(&hash))
        }
        _ => None,
    }
}

/// The work without what does not change its result.
fn canonical(work: &Work) -> Work {
    let mut work = work.clone();
    if let Work::Generate(Generate { sampling, .. }) = &mut work
        && sampling.is_greedy()
    {
        let logit_bias = std::mem::take(&mut sampling.logit_bias);
        *sampling = Sampling { penalties: sampling.penalties, logit_bias, ..Sampling::default() };
    }
    work
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_long_key(text: &str) -> bool {
    text.strip_prefix(PREFIX).is_some_and(is_digest)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{CacheKey, cache_key, cache_key_of_many, dedup_key, digest, hex};
    use crate::KERNEL_VERSION;
    use crate::{BackendKind, Embed, Generate, KvCacheType, Message, Penalties, Role, Sampling, Work};

    const MODEL: [u8; 32] = [1; 32];

    fn generate(prompt: &str, stop: &[&str]) -> Generate {
        let stop = stop.iter().map(|stop| (*stop).to_owned()).collect();
        Generate {
            prompt: prompt.to_owned(),
            max_tokens: 512,
            sampling: Sampling::default(),
            stop,
            ..Generate::default()
        }
    }

    /// Greedy, with a penalty.
    fn penalised(with: impl Fn(&mut Penalties)) -> Sampling {
        let mut sampling = Sampling::default();
        with(&mut sampling.penalties);
        sampling
    }

    fn said(role: Role, text: &str) -> Message {
        Message { role, text: text.to_owned() }
    }

    fn key(request_type: &str, work: Work) -> CacheKey {
        cache_key(request_type, &work, false, Some(&MODEL), BackendKind::default()).unwrap()
    }

    fn text(how: Generate) -> String {
        key("generate", Work::Generate(how)).text
    }

    fn embed(text: &str) -> Work {
        Work::Embed(Embed::passage(text))
    }

    #[test]
    fn default_requests_have_steadytexts_own_keys() {
        assert_eq!(text(generate("What is a tuple?", &[])), "What is a tuple?");
        assert_eq!(text(generate("What is a tuple?", &["END"])), "What is a tuple?::EOS::END");
        // hashlib.sha256(b"embed:Hello world").hexdigest()
        assert_eq!(
            key("embed", embed("Hello world")).text,
            "ec37eea87b9b4a310abed3047e2c5acaf1e602d68281f6882a6c794ba1abdc9f"
        );
    }

    #[test]
    fn every_parameter_that_can_change_the_bytes_changes_the_key() {
        let warm = Sampling { temperature: 0.5, ..Sampling::default() };
        let works = [
            generate("p", &[]),
            generate("p", &["a", "b"]),
            Generate { max_tokens: 511, ..generate("p", &[]) },
            Generate { sampling: warm.clone(), ..generate("p", &[]) },
            Generate { sampling: Sampling { seed: 7, ..warm.clone() }, ..generate("p", &[]) },
            Generate { sampling: Sampling { top_k: 7, ..warm.clone() }, ..generate("p", &[]) },
            Generate { sampling: Sampling { top_p: 0.5, ..warm.clone() }, ..generate("p", &[]) },
            Generate { sampling: Sampling { min_p: 0.5, ..warm.clone() }, ..generate("p", &[]) },
            Generate { sampling: penalised(|penalties| penalties.repeat = 1.1), ..generate("p", &[]) },
            Generate { sampling: penalised(|penalties| penalties.presence = 0.5), ..generate("p", &[]) },
            Generate { sampling: penalised(|penalties| penalties.frequency = 0.5), ..generate("p", &[]) },
            Generate {
                sampling: Sampling { logit_bias: vec![(7, 1.0)], ..Sampling::default() },
                ..generate("p", &[])
            },
            Generate { sampling: Sampling { logit_bias: vec![(7, 1.0)], ..warm }, ..generate("p", &[]) },
            Generate { system: Some(String::new()), ..generate("p", &[]) },
            Generate { system: Some("s".to_owned()), ..generate("p", &[]) },
            Generate { history: vec![said(Role::User, "s")], ..generate("p", &[]) },
            Generate { history: vec![said(Role::Assistant, "s")], ..generate("p", &[]) },
            Generate { thinking: true, ..generate("p", &[]) },
        ];
        let mut seen = HashMap::new();
        for names_model in [false, true] {
            for request_type in ["generate", "generate_json"] {
                for (model, work) in [[1; 32], [2; 32]].iter().flat_map(|m| works.iter().map(move |w| (m, w)))
                {
                    let work = Work::Generate(work.clone());
                    let key =
                        cache_key(request_type, &work, names_model, Some(model), BackendKind::default())
                            .unwrap();
                    // A short key names no model, and a long one always does.
                    let is = match key.is_short {
                        true => format!("{request_type} {work:?}"),
                        false => format!("{request_type} {work:?} {model:?}"),
                    };
                    let before = seen.insert(key.text, is.clone());
                    assert!(before.is_none_or(|before| before == is), "{is}");
                }
            }
        }
        assert_eq!(seen.len(), 1 + 2 * works.len() * 2);
    }

    #[test]
    fn the_native_backend_has_the_keys_of_before_there_were_others() {
        let work = Work::Generate(Generate { max_tokens: 9, ..generate("p", &[]) });
        let content = serde_json::to_vec(&work).unwrap();
        let expected = digest(&[b"generate", &MODEL, &KERNEL_VERSION.to_le_bytes(), &content]);
        assert_eq!(key("generate", work).text, format!("steadytext/1:{}", hex(&expected)));
    }

    #[test]
    fn how_keys_and_values_are_kept_is_part_of_the_key() {
        let work = Work::Generate(Generate { max_tokens: 9, ..generate("p", &[]) });
        let [f16, q8_0] = KvCacheType::ALL.map(BackendKind::Native);
        let key = |backend| cache_key("generate", &work, false, Some(&MODEL), backend).unwrap().text;
        assert_ne!(key(f16), key(q8_0));
        assert_ne!(f16.kernel_version(), q8_0.kernel_version());
        assert_ne!(dedup_key(1, &work, f16), dedup_key(1, &work, q8_0));
        let many = |backend| cache_key_of_many("rerank", &work, &MODEL, backend).unwrap().text;
        assert_ne!(many(f16), many(q8_0));
    }

    #[test]
    fn requests_without_system_message_history_and_thoughts_have_the_keys_of_before_there_were_any() {
        let key = text(Generate { max_tokens: 9, stop: vec!["END".to_owned()], ..generate("p", &[]) });
        assert_eq!(key, "steadytext/1:0b188a16098dbb4ccfc0cba0a5f44395e1096ce049d07ee899eb498812e648b3");
    }

    #[test]
    fn sampling_without_penalties_and_bias_has_the_keys_of_before_there_were_any() {
        let sampling = Sampling { temperature: 0.5, ..Sampling::default() };
        let json = serde_json::to_string(&sampling).unwrap();
        assert_eq!(json, r#"{"temperature":0.5,"top_k":0,"top_p":1.0,"min_p":0.0,"seed":42}"#);
        let sampling =
            Sampling { logit_bias: vec![(7, -1.5)], ..penalised(|penalties| penalties.repeat = 2.0) };
        let sent = postcard::to_allocvec(&sampling).unwrap();
        assert_eq!(postcard::from_bytes::<Sampling>(&sent).unwrap(), sampling);
    }

    #[test]
    fn a_text_that_may_be_cut_has_a_key_of_its_own() {
        let cut = Work::Embed(Embed { truncate: true, ..Embed::passage("p") });
        let whole = key("embed", embed("p"));
        assert!(whole.is_short && !key("embed", cut.clone()).is_short);
        assert_ne!(key("embed", cut), whole);
    }

    #[test]
    fn prompts_and_dimensions_have_keys_of_their_own_and_without_them_keys_are_as_before() {
        let plain = Embed::query("p", None);
        let prompted = |prompt: &str| Embed { prompt: Some(prompt.to_owned()), ..Embed::passage("p") };
        let shorter = |dimensions| Embed { dimensions: Some(dimensions), ..Embed::passage("p") };
        let works =
            [Embed::passage("p"), prompted(""), prompted("x"), shorter(64), shorter(128), plain.clone()];
        let keys: std::collections::HashSet<String> =
            works.iter().map(|work| key("embed", Work::Embed(work.clone())).text).collect();
        assert_eq!(keys.len(), works.len());
        assert!(!key("embed", Work::Embed(prompted(""))).is_short);
        let json = serde_json::to_string(&plain).unwrap();
        assert_eq!(json, r#"{"text":"p","purpose":{"Query":{"task":null}},"truncate":false}"#);
        let sent = postcard::to_allocvec(&works[3]).unwrap();
        assert_eq!(postcard::from_bytes::<Embed>(&sent).unwrap(), works[3]);
    }

    #[test]
    fn what_cannot_change_the_bytes_does_not_change_the_key() {
        let cold = Sampling { seed: 7, top_k: 3, top_p: 0.2, min_p: 0.1, ..Sampling::default() };
        assert_eq!(text(Generate { sampling: cold.clone(), ..generate("p", &[]) }), "p");
        let long = |sampling| text(Generate { sampling, max_tokens: 9, ..generate("p", &[]) });
        assert_eq!(long(cold), long(Sampling::default()));
    }

    #[test]
    fn without_the_models_checksum_there_are_short_keys_only() {
        assert!(cache_key("embed", &embed("x"), false, None, BackendKind::default()).is_some());
        assert!(cache_key("embed", &embed("x"), true, None, BackendKind::default()).is_none());
    }

    /// All prompts and ends of up to three pieces that look like parts of keys.
    #[test]
    fn no_two_requests_share_a_key_however_their_texts_look() {
        let digest = hex(&[0xab; 32]);
        let pieces =
            ["x", ":", "::", "EOS", "::EOS", "EOS::", "::EOS::", "steadytext/1:", "embed:", digest.as_str()];
        let mut texts = vec![String::new()];
        for _ in 0..3 {
            let longer: Vec<String> = texts
                .iter()
                .flat_map(|text| pieces.iter().map(move |piece| format!("{text}{piece}")))
                .collect();
            texts.extend(longer);
            texts.sort();
            texts.dedup();
        }
        texts.retain(|text| !text.is_empty());
        let short: Vec<&str> = texts.iter().map(String::as_str).filter(|text| text.len() <= 14).collect();
        let mut seen: HashMap<String, (&str, Option<&str>)> = HashMap::new();
        for prompt in &texts {
            let ends = short.iter().map(|end| Some(*end)).filter(|_| prompt.len() <= 14);
            for end in std::iter::once(None).chain(ends) {
                let key = text(generate(prompt, end.as_slice()));
                if let Some(other) = seen.insert(key.clone(), (prompt, end)) {
                    panic!("{key}: {other:?} and {:?}", (prompt, end));
                }
            }
        }
        for text in &texts {
            assert!(!seen.contains_key(&key("embed", embed(text)).text), "{text}");
        }
        assert!(seen.len() > 10_000, "{}", seen.len());
        // The text that such a key is made of is no prompt that shares the key.
        let long = text(Generate { max_tokens: 1, ..generate("x", &[]) });
        assert_ne!(text(generate(&long, &[])), long);
        let vector = key("embed", embed("x")).text;
        assert_ne!(text(generate(&vector, &[])), vector);
    }
}
