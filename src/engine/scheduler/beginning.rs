//! The beginning of a request: its state, and the positions of it that are computed already.

use super::loaded::LoadedDecoder;
use super::plan::Plan;
use super::prefix::Chain;
use crate::computing::{Pooling, State};
use crate::rerank::Reranker;
use crate::{Request, Work};

/// The last token is always computed, as every result comes from its hidden state.
pub(super) fn reusable(tokens: &[u32]) -> &[u32] {
    tokens.split_last().map_or(&[], |(_, before)| before)
}

/// The state in which a request begins.
pub(super) struct RequestBeginning {
    pub(super) state: Box<dyn State>,
    pub(super) chain: Option<Chain>,
    pub(super) positions: usize,
}

impl RequestBeginning {
    /// A state with as many kept blocks of the model as the prompt begins with; none of them unless `reuse`
    /// is set.
    pub(super) fn of(
        plan: &Plan,
        request: &Request,
        loaded: &mut LoadedDecoder,
        reuse: bool,
    ) -> RequestBeginning {
        let mut state = loaded.decoder.new_state();
        let embeds = match request.work {
            Work::Generate(_)
            | Work::Likelihoods(_)
            | Work::Tokenize { .. }
            | Work::Chunk(_)
            | Work::Verify(_) => false,
            Work::Embed(_) => true,
            Work::Rerank(_) => loaded.reranker == Reranker::Cosine,
        };
        // The hidden states of all tokens are needed, or that of the first.
        let whole = embeds && loaded.decoder.facts().pooling != Pooling::Last;
        let chain = (reuse && !whole).then(|| {
            let mut chain = Chain::new(request.salt);
            loaded.prefixes.attach(&mut chain, &mut *state, reusable(&plan.tokens));
            if plan.answers.is_some() {
                loaded.prefixes.attach_tail(&chain, &mut *state, reusable(&plan.tokens));
            }
            chain
        });
        RequestBeginning { state, chain, positions: plan.positions }
    }

    /// Bytes of state that the request will add to the model's kept blocks.
    pub(super) fn own_bytes(&self) -> u64 {
        own_bytes(&*self.state, self.chain.as_ref(), self.positions)
    }

    /// Bytes of state that it would have if it shared none.
    pub(super) fn whole_bytes(&self) -> u64 {
        self.state.bytes(self.positions)
    }

    /// Positions that need not be computed.
    pub(super) fn reused(&self) -> usize {
        self.state.len()
    }
}

/// Bytes of a state that are not those of kept blocks. Those that windows see are its own even where others
/// share them, as everybody lets go of them and takes new ones by itself.
pub(super) fn own_bytes(state: &dyn State, chain: Option<&Chain>, positions: usize) -> u64 {
    state.bytes(positions) - state.block_bytes(chain.map_or(0, Chain::blocks))
}
