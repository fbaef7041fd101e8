//! Likelihoods of given answers to one prompt: a tree of their tokens, and the passes that compute it.
//!
//! Answers that begin with the same tokens share the nodes of their beginning, so that each is computed once.
//! A row of the model is needed for each node that something follows: the logits behind it say how likely
//! each of its children is. The first row is that of the prompt's last token, and what follows it is computed
//! path by path: a state goes back to where the next path leaves the one before. Several paths are computed
//! at a time where there is room for a state for each; the number of a path is that of its state. Answers of
//! one token each need no row beside that of the prompt.
//!
//! The logarithm of an answer's probability is the sum of those of its tokens, each among all tokens of the
//! vocabulary. An answer with which another one begins has one more decision, its end: without it the longer
//! answer could never be more likely.
//!
//! Invariant: each number depends on the logits of its own row and on nothing else, so not on how the answers
//! are put in passes.

use std::ops::Range;

use crate::Error;
use crate::kernels::highest;
use crate::kernels::instructions::Instructions;
use crate::kernels::softmax::sum_of_exps;
use crate::tokenizer::Tokenizer;

/// The token that a node stands for, or the end of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// This token.
    Token(u32),
    /// The end of the answer, by whatever token.
    End,
}

/// A node of the tree of answers: one more token behind those of its ancestors, or the end of an answer.
#[derive(Debug)]
struct AnswerNode {
    next: Next,
    parent: usize,
    /// Number of nodes between the end of the prompt and this node, itself included.
    depth: usize,
    children: Vec<usize>,
    /// The logarithm of its probability given the path to its parent; None until it is computed.
    log_probability: Option<f64>,
}

/// The answers to a prompt.
#[derive(Debug)]
pub(super) struct Answers {
    /// Nodes in depth-first order. The first is the root, which is the end of the prompt; ends of answers
    /// come last.
    nodes: Vec<AnswerNode>,
    /// The last node of each answer, in the order in which the answers were given.
    ends: Vec<usize>,
    /// The paths that are computed now, each from the prompt's end on.
    paths: Vec<Vec<usize>>,
    /// The last node of the last path that was begun.
    begun: usize,
    /// Paths that were begun and given up.
    given_up: Vec<Vec<usize>>,
    /// Tokens that end answers.
    end_tokens: Vec<u32>,
}

/// A row whose logits are wanted, and the children of its node in the tree.
#[derive(Debug)]
pub(super) struct AnswerRow {
    node: usize,
    children: Vec<Next>,
    end_tokens: Vec<u32>,
}

impl Answers {
    /// The tree of some answers, which are texts that go on behind the prompt.
    ///
    /// # Errors
    /// [`Error::UnreadableText`] for one that has no tokens.
    pub(super) fn new<'a>(
        texts: impl Iterator<Item = &'a str>,
        tokenizer: &Tokenizer,
    ) -> Result<Answers, Error> {
        let tokens: Vec<Vec<u32>> = texts.map(|text| tokenizer.encode_bytes(text.as_bytes())).collect();
        if tokens.iter().any(Vec::is_empty) {
            return Err(Error::UnreadableText { reason: "an answer has no tokens".to_owned() });
        }
        Ok(Answers::of_tokens(&tokens, tokenizer.end_tokens()))
    }

    fn of_tokens(tokens: &[Vec<u32>], end_tokens: &[u32]) -> Answers {
        let root =
            AnswerNode { next: Next::End, parent: 0, depth: 0, children: Vec::new(), log_probability: None };
        let mut nodes = vec![root];
        let mut ends = vec![0; tokens.len()];
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by(|a, b| tokens[*a].cmp(&tokens[*b]));
        // The path to the answer before, whose beginning the next one may share.
        let mut path = vec![0];
        for answer in order {
            let tokens = &tokens[answer];
            let shared = path.iter().skip(1).zip(tokens);
            let shared =
                shared.take_while(|(node, token)| nodes[**node].next == Next::Token(**token)).count();
            path.truncate(1 + shared);
            for token in &tokens[shared..] {
                let parent = path.last().copied().unwrap_or(0);
                path.push(add(&mut nodes, parent, Next::Token(*token)));
            }
            ends[answer] = path.last().copied().unwrap_or(0);
        }
        // An answer that is the beginning of another one needs a node for its end.
        if !end_tokens.is_empty() {
            let mut within: Vec<usize> =
                ends.iter().copied().filter(|end| !nodes[*end].children.is_empty()).collect();
            within.sort_unstable();
            within.dedup();
            for parent in within {
                let end = add(&mut nodes, parent, Next::End);
                ends.iter_mut().filter(|node| **node == parent).for_each(|node| *node = end);
            }
        }
        let (paths, end_tokens) = (vec![vec![0]], end_tokens.to_vec());
        let mut answers = Answers { nodes, ends, paths, begun: 0, given_up: Vec::new(), end_tokens };
        answers.advance(0);
        answers
    }

    /// Positions behind the prompt that the longest path takes.
    pub(super) fn positions(&self) -> usize {
        let inner = self.nodes.iter().filter(|node| !node.children.is_empty());
        inner.map(|node| node.depth).max().unwrap_or(0)
    }

    /// The path that begins to differ at the first inner node behind `after`: from the prompt's end on, as
    /// deep as one inner node follows the other. The prompt's end alone where there is none.
    fn next_path(&self, after: usize) -> Vec<usize> {
        let is_inner = |node: &usize| !self.nodes[*node].children.is_empty();
        let mut rest = (after + 1..self.nodes.len()).filter(is_inner);
        let Some(mut last) = rest.next() else { return vec![0] };
        for node in rest {
            if self.nodes[node].parent != last {
                break;
            }
            last = node;
        }
        let mut path = vec![last];
        while last != 0 {
            last = self.nodes[last].parent;
            path.push(last);
        }
        path.reverse();
        path
    }

    /// Tokens of a path behind the prompt that are to be computed now.
    pub(super) fn tokens(&self, path: usize) -> impl Iterator<Item = u32> {
        self.paths[path][1..].iter().filter_map(|node| match self.nodes[*node].next {
            Next::Token(token) => Some(token),
            Next::End => None,
        })
    }

    /// The wanted rows of a path among the range `rows` of computed rows, which is counted from the row of
    /// the prompt's last token. Each comes with its index in the range.
    pub(super) fn wanted(&self, path: usize, rows: Range<usize>) -> Vec<(usize, AnswerRow)> {
        let first = rows.start;
        let nodes = rows.filter_map(|row| Some((row - first, *self.paths[path].get(row)?)));
        let open = nodes.filter(|(_, node)| {
            let children = &self.nodes[*node].children;
            children.first().is_some_and(|child| self.nodes[*child].log_probability.is_none())
        });
        open.map(|(row, node)| {
            let children: Vec<Next> =
                self.nodes[node].children.iter().map(|child| self.nodes[*child].next).collect();
            let end_tokens = if children.contains(&Next::End) { self.end_tokens.clone() } else { Vec::new() };
            (row, AnswerRow { node, children, end_tokens })
        })
        .collect()
    }

    /// Takes the log-probabilities of a row's children.
    pub(super) fn take(&mut self, wanted: &AnswerRow, log_probabilities: &[f64]) {
        let children = self.nodes[wanted.node].children.clone();
        for (child, log_probability) in children.into_iter().zip(log_probabilities) {
            self.nodes[child].log_probability = Some(*log_probability);
        }
    }

    /// Replaces a path, all of whose rows were taken, by one that was not begun. Returns how many tokens
    /// behind the prompt the two have in common; None where no path is left.
    pub(super) fn advance(&mut self, path: usize) -> Option<usize> {
        let next = self.given_up.pop().unwrap_or_else(|| {
            let next = self.next_path(self.begun);
            self.begun = self.begun.max(next.last().copied().unwrap_or(0));
            next
        });
        let before = std::mem::replace(&mut self.paths[path], next);
        let next = &self.paths[path];
        let differs = next.iter().zip(&before).skip(1).take_while(|(next, before)| next == before).count();
        (next.len() > 1).then_some(differs)
    }

    /// Begins one more path beside the others; false where none is left.
    pub(super) fn widen(&mut self) -> bool {
        self.paths.push(vec![0]);
        let is_one = self.advance(self.paths.len() - 1).is_some();
        if !is_one {
            self.paths.pop();
        }
        is_one
    }

    /// Gives up all paths but the first `left`; they are begun again later.
    pub(super) fn narrow(&mut self, left: usize) {
        let given_up = self.paths.drain(left.min(self.paths.len())..);
        self.given_up.extend(given_up.filter(|path| path.len() > 1));
    }

    /// The logarithms of the answers' probabilities, in the order in which the answers were given. None
    /// before all are known.
    pub(super) fn log_probabilities(&self) -> Option<Vec<f64>> {
        let of = |end: &usize| {
            let (mut node, mut sum) = (*end, 0.0);
            while node != 0 {
                sum += self.nodes[node].log_probability?;
                node = self.nodes[node].parent;
            }
            Some(sum)
        };
        self.ends.iter().map(of).collect()
    }
}

fn add(nodes: &mut Vec<AnswerNode>, parent: usize, next: Next) -> usize {
    let (index, depth) = (nodes.len(), nodes[parent].depth + 1);
    nodes.push(AnswerNode { next, parent, depth, children: Vec::new(), log_probability: None });
    nodes[parent].children.push(index);
    index
}

impl AnswerRow {
    /// The log-probabilities of the children of its node, from the logits of all tokens behind the node. None
    /// where one of the logits is not a finite number.
    pub(super) fn log_probabilities(&self, logits: &[f32], instructions: Instructions) -> Option<Vec<f64>> {
        let highest = *logits.get(highest(instructions, logits)?)?;
        let all = libm::log(sum_of_exps(instructions, logits, highest));
        let above =
            |token: u32| logits.get(token as usize).map(|logit| f64::from(*logit) - f64::from(highest));
        let of = |next: &Next| match next {
            Next::Token(token) => above(*token).map(|logit| logit - all),
            Next::End => {
                let ends = || self.end_tokens.iter().filter_map(|token| above(*token));
                let highest = ends().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = ends().map(|end| libm::exp(end - highest)).sum();
                highest.is_finite().then(|| highest + libm::log(sum) - all)
            }
        };
        self.children.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: usize = 50;
    const END: [u32; 2] = [48, 49];

    /// Made-up logits behind some tokens.
    fn logits(tokens: &[u32]) -> Vec<f32> {
        let seed = tokens.iter().fold(7_u32, |seed, token| seed.wrapping_mul(31).wrapping_add(*token));
        (0..VOCABULARY as u32).map(|id| (seed.wrapping_mul(id + 3) % 1009) as f32 / 100.0).collect()
    }

    fn log_softmax(logits: &[f32], tokens: &[u32]) -> f64 {
        let sum = |ids: &mut dyn Iterator<Item = usize>| -> f64 {
            ids.map(|id| libm::exp(f64::from(logits[id]))).sum()
        };
        libm::log(sum(&mut tokens.iter().map(|token| *token as usize)) / sum(&mut (0..VOCABULARY)))
    }

    /// Computes the answers pass by pass, so many paths at a time; the rows that were computed, and the
    /// passes.
    fn run(answers: &mut Answers, paths: usize) -> (usize, usize) {
        let (mut rows, mut passes) = (0, 0);
        // The row of the prompt's last token comes with the first path.
        let mut from = vec![Some(0)];
        while from.iter().any(Option::is_some) {
            passes += 1;
            for (path, from) in from.iter_mut().enumerate() {
                let Some(begin) = *from else { continue };
                let tokens: Vec<u32> = answers.tokens(path).collect();
                for (row, wanted) in answers.wanted(path, begin..tokens.len() + 1) {
                    let logits = logits(&tokens[..begin + row]);
                    let values = wanted.log_probabilities(&logits, Instructions::best()).unwrap();
                    answers.take(&wanted, &values);
                }
                rows += tokens.len() + 1 - begin;
                *from = answers.advance(path).map(|shared| shared + 1);
            }
            while from.len() < paths && answers.widen() {
                from.push(Some(1));
            }
        }
        (rows, passes)
    }

    #[test]
    fn probabilities_are_those_of_the_tokens_one_by_one_and_beginnings_are_computed_once() {
        let texts: Vec<Vec<u32>> =
            [&[1][..], &[2, 3, 4], &[2, 3], &[2, 3, 5, 6, 7], &[2, 9], &[8, 8, 8], &[2, 3, 5, 6, 1], &[1]]
                .map(<[u32]>::to_vec)
                .to_vec();
        let mut answers = Answers::of_tokens(&texts, &END);
        assert_eq!(answers.positions(), 4);
        let (rows, _) = run(&mut answers, 1);
        assert_eq!(rows, 7, "the prompt, 2, 2 3, 2 3 5, 2 3 5 6, 8, 8 8");
        let values = answers.log_probabilities().unwrap();
        for (tokens, value) in texts.iter().zip(&values) {
            let mut exact: f64 =
                (0..tokens.len()).map(|n| log_softmax(&logits(&tokens[..n]), &tokens[n..=n])).sum();
            if *tokens == [2, 3] {
                exact += log_softmax(&logits(tokens), &END);
            }
            assert!((exact - value).abs() < 1e-5, "{value} is not {exact} of {tokens:?}");
        }
        assert_eq!(values[0], values[7], "the same twice");
    }

    #[test]
    fn answers_of_one_token_need_the_prompts_row_only() {
        let mut answers = Answers::of_tokens(&[vec![4], vec![5], vec![6]], &END);
        assert_eq!((answers.positions(), run(&mut answers, 1)), (0, (1, 1)));
        let sum: f64 = answers.log_probabilities().unwrap().iter().map(|value| libm::exp(*value)).sum();
        assert!(sum < 1.0);
    }

    #[test]
    fn numbers_do_not_depend_on_the_other_answers() {
        let own = |texts: &[&[u32]]| {
            let texts: Vec<Vec<u32>> = texts.iter().map(|text| text.to_vec()).collect();
            let mut answers = Answers::of_tokens(&texts, &END);
            run(&mut answers, 1);
            answers.log_probabilities().unwrap()[0].to_bits()
        };
        assert_eq!(own(&[&[2, 3, 4]]), own(&[&[2, 3, 4], &[2, 3, 5], &[2], &[9, 9]]));
        assert_ne!(
            own(&[&[2, 3]]),
            own(&[&[2, 3], &[2, 3, 4]]),
            "but that the end counts where another one goes on"
        );
    }

    #[test]
    fn several_paths_at_a_time_take_fewer_passes_and_come_to_the_same() {
        let texts: Vec<Vec<u32>> =
            (0..300u32).map(|i| vec![i / 100, 3 + i / 10 % 10, 13 + i % 10, 1 + i % 3, 40]).collect();
        let computed = |paths| {
            let mut answers = Answers::of_tokens(&texts, &END);
            let (_, passes) = run(&mut answers, paths);
            (answers.log_probabilities().unwrap(), passes)
        };
        let (expected, passes) = computed(1);
        assert_eq!(passes, 300);
        for paths in [2, 16, 400] {
            let (values, fewer) = computed(paths);
            assert_eq!(values, expected);
            assert!(fewer <= 1 + 300usize.div_ceil(paths), "{fewer} passes with {paths} paths");
        }
    }

    #[test]
    fn paths_that_are_given_up_are_begun_again() {
        let texts: Vec<Vec<u32>> = (0..20u32).map(|i| vec![i, 30, 31]).collect();
        let mut expected = Answers::of_tokens(&texts, &END);
        run(&mut expected, 1);
        let mut answers = Answers::of_tokens(&texts, &END);
        let (_, wanted) = answers.wanted(0, 0..1).pop().unwrap();
        answers.take(&wanted, &wanted.log_probabilities(&logits(&[]), Instructions::best()).unwrap());
        (0..6).for_each(|_| assert!(answers.widen()));
        answers.narrow(1);
        run(&mut answers, 3);
        assert_eq!(answers.log_probabilities().unwrap(), expected.log_probabilities().unwrap());
    }

    #[test]
    fn logits_that_are_no_numbers_are_noticed() {
        let answers = Answers::of_tokens(&[vec![4]], &END);
        let (_, wanted) = answers.wanted(0, 0..1).pop().unwrap();
        let mut logits = logits(&[]);
        assert!(wanted.log_probabilities(&logits, Instructions::best()).is_some());
        logits[17] = f32::NAN;
        assert!(wanted.log_probabilities(&logits, Instructions::best()).is_none());
    }
}
