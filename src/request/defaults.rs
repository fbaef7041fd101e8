//! Default values of the parameters of requests.
//!
//! The SQL functions repeat these values as the defaults of their arguments, because callers see them there;
//! the server test `defaults` compares the two, and compiles this file for that purpose.
//!
//! Invariant: this file holds constants and uses nothing but the engine's.

/// `max_tokens`, where the setting `default_max_tokens` is missing, in tokens.
pub(crate) const MAX_TOKENS: i64 = 512;
/// `seed`, and the setting `default_seed`.
pub(crate) const SEED: i64 = steadytext_engine::DEFAULT_SEED as i64;
/// `temperature`: the most likely token is taken.
pub(crate) const TEMPERATURE: f64 = 0.0;
/// `eos_string`: the predecessor's word for "where the model itself ends".
pub(crate) const EOS_STRING: &str = "[EOS]";
/// `use_cache`.
pub(crate) const USE_CACHE: bool = true;
/// `truncate`: a text that is too long is an error.
pub(crate) const TRUNCATE: bool = false;
/// `return_scores`.
pub(crate) const RETURN_SCORES: bool = true;
/// `task` of a reranking: the instruction of the model.
pub(crate) const RERANK_TASK: &str = steadytext_engine::DEFAULT_TASK;
/// `method` of a classification: a model that generates says how likely each category is.
pub(crate) const METHOD: &str = "generate";
/// `threshold` of a classification into several categories.
pub(crate) const THRESHOLD: f64 = 0.5;
/// `max_facts` of a list of facts.
pub(crate) const MAX_FACTS: i64 = 10;
/// `similarity_threshold` of facts that say the same.
pub(crate) const SIMILARITY_THRESHOLD: f64 = 0.85;
/// `max_words` of a summary.
pub(crate) const MAX_WORDS: i64 = 50;
/// `priority`, from 1 to 10.
pub(crate) const PRIORITY: i64 = 5;
