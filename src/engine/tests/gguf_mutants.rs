//! Thousands of damaged model files: opening them, and making tokenizer and template from them, neither
//! panics nor takes excessive memory. The damage is the same in every run.
#![cfg(target_os = "linux")]

use std::path::Path;

use rustix::process::{Resource, Rlimit, setrlimit};
use steadytext_engine::gguf::Gguf;
use steadytext_engine::template::ChatTemplate;
use steadytext_engine::tokenizer::Tokenizer;
use steadytext_test_models::gguf::Value;
use steadytext_test_models::{Architecture, Spec};

const MUTANTS: usize = 3_000;
/// Room for the sandbox's stack and the allocator's arenas; allocations by a number from a damaged file
/// exceed it.
const HEADROOM_BYTES: u64 = 512 << 20;

/// A whole small model without its tensors' bulk, and with a key of every type.
fn sample() -> Vec<u8> {
    let spec =
        Spec { vocab: 300, width: 32, heads: 1, kv_heads: 1, layers: 1, ..Spec::tiny(Architecture::Qwen3) };
    let mut file = steadytext_test_models::file(&spec).unwrap();
    file.tensors.truncate(2);
    file.set("a.floats", Value::F32s(vec![1.0, f32::NAN]));
    file.set("general.alignment", Value::U32(32));
    let mut bytes = Vec::new();
    file.write(&mut bytes).unwrap();
    bytes
}

/// Reads everything that can be reached from the file.
fn visit(path: &Path) -> bool {
    let Ok(gguf) = Gguf::open(path) else { return false };
    let mut seen = 0usize;
    for (key, _) in gguf.keys() {
        seen += gguf.opt_str(key).ok().flatten().map_or(0, str::len);
        seen += gguf.opt_u32(key).ok().flatten().map_or(0, |value| value as usize & 1);
        seen += gguf.opt_f32(key).ok().flatten().map_or(0, |value| usize::from(value > 0.0));
        seen += gguf.opt_strings(key).ok().flatten().map_or(0, |strings| strings.map(str::len).sum());
        seen += gguf.opt_i32s(key).ok().flatten().map_or(0, |values| values.count());
        seen += gguf.opt_f32s(key).ok().flatten().map_or(0, |values| values.count());
    }
    for tensor in gguf.tensors() {
        let elements: usize = tensor.shape.iter().product();
        if let Some((block, size)) = tensor.kind.block() {
            assert_eq!(tensor.data.len(), elements / block * size, "{}", tensor.name);
        }
        seen += tensor.data.iter().map(|byte| usize::from(*byte)).sum::<usize>();
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        seen +=
            tokenizer.encode_marked("<|im_start|>user\nHello, world 123\u{1f600}").map_or(0, |ids| ids.len());
        seen += tokenizer.encode_embedding("text").map_or(0, |ids| ids.len());
        if let Ok(template) = ChatTemplate::from_gguf(&gguf) {
            seen += template.encode_prompt(&tokenizer, "<|im_end|> x").map_or(0, |ids| ids.len());
        }
    }
    std::hint::black_box(seen);
    true
}

fn limit_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kilobytes: u64 = size.trim().trim_end_matches("kB").trim().parse().unwrap();
    let bytes = kilobytes * 1024 + HEADROOM_BYTES;
    setrlimit(Resource::As, Rlimit { current: Some(bytes), maximum: Some(bytes) }).unwrap();
}

#[test]
fn damaged_files_neither_panic_nor_take_much_memory() {
    crate::alone("gguf_mutants::damaged_files_neither_panic_nor_take_much_memory", open_mutants);
}

fn open_mutants() {
    let whole = sample();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mutant.gguf");
    limit_memory();
    std::fs::write(&path, &whole).unwrap();
    assert!(visit(&path), "the sample itself is sound");

    let mut state = 7u64;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let mut opened = 0;
    for _ in 0..MUTANTS {
        let mut bytes = whole.clone();
        for _ in 0..1 + next(4) {
            // Structure is dense at the beginning.
            let at = if next(2) == 0 { next(bytes.len().min(2000)) } else { next(bytes.len()) };
            match next(6) {
                0 => bytes[at] = next(256) as u8,
                1 => bytes[at] ^= 1 << next(8),
                // Numbers that overflow sums and products.
                2 | 3 => {
                    let numbers = [0, 1, 1 << 31, u64::from(u32::MAX), 1 << 62, u64::MAX - 31, u64::MAX];
                    let width = [4, 8][next(2)].min(bytes.len() - at);
                    bytes[at..at + width].copy_from_slice(&numbers[next(7)].to_le_bytes()[..width]);
                }
                4 => bytes.truncate(at.max(1)),
                _ => {
                    let (from, length) = (next(bytes.len()), next(40));
                    let piece: Vec<u8> = bytes.iter().skip(from).take(length).copied().collect();
                    bytes.splice(at..at, piece);
                }
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        opened += usize::from(visit(&path));
    }
    assert!((100..MUTANTS - 100).contains(&opened), "{opened} of {MUTANTS} could be opened");
}
