//! A place in a context-free grammar: Earley's sets of items, one row behind each lexeme, beside llguidance's
//! own, which it does not expose. Each row also has the least text that comes behind each symbol that it
//! waits for, so that the shortest way to the end is known from every place.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use llguidance::earley::lexerspec::LexemeIdx;
use llguidance::earley::regexvec::{LexemeSet, RegexVec, StateID};
use toktrie::TokEnv;

use super::ends::Ends;
use super::shape::{GrammarShape, START};
use super::words::{Cost, NEVER, cost};

/// Most items of all rows.
const MAX_ITEMS: usize = 400_000;
/// Longest way to the end, in bytes.
const MAX_TEXT: usize = 16 << 10;

/// The parse of a text so far.
#[derive(Clone)]
pub(in crate::constraints) struct Chart {
    shape: Arc<GrammarShape>,
    ends: Ends,
    words: TokEnv,
    lexer: RegexVec,
    lexemes: usize,
    rows: Vec<ChartRow>,
    /// The state of the lexer.
    state: StateID,
    /// Whether a lexeme has begun.
    begun: bool,
    items: usize,
    /// The last end that was searched for: its row, its state, and the result.
    last: Option<(usize, StateID, bool, Option<LexemeEnd>)>,
}

/// The next lexeme's end: its rest, and the item that waits for it.
type LexemeEnd = (Box<[u8]>, u32);

/// Productions that may be in progress behind a lexeme, each with its place and the row of its beginning.
#[derive(Clone)]
struct ChartRow {
    items: Vec<(u32, u32)>,
    /// Items by the symbol that comes next.
    waiting: HashMap<u32, Vec<u32>>,
    /// For each symbol that comes next, the cost of the least that comes behind it, and the item that has it;
    /// None where nothing does.
    behind: HashMap<u32, (Cost, Option<u32>)>,
    /// Whether the text may end here.
    complete: bool,
}

/// A place to go back to.
#[derive(Clone, Copy)]
pub(in crate::constraints) struct ChartMark {
    rows: usize,
    state: StateID,
    begun: bool,
}

impl Chart {
    /// The beginning of a grammar.
    pub(super) fn new(
        shape: Arc<GrammarShape>,
        ends: Ends,
        words: TokEnv,
        lexer: RegexVec,
        lexemes: usize,
    ) -> Option<Chart> {
        let mut chart = Chart {
            shape,
            ends,
            words,
            lexer,
            lexemes,
            rows: Vec::new(),
            state: StateID::DEAD,
            begun: false,
            items: 0,
            last: None,
        };
        let shape = Arc::clone(&chart.shape);
        let start = &shape.symbols[START as usize];
        let items = start.rules.iter().map(|rule| (*rule, 0)).collect();
        chart.add_row(items).then_some(())?;
        chart.rows[0].complete |= start.nullable;
        Some(chart)
    }

    /// Approximate bytes of a copy of it.
    pub(in crate::constraints) fn bytes(&self) -> usize {
        self.lexer.num_bytes()
    }

    /// The current place.
    pub(in crate::constraints) fn mark(&self) -> ChartMark {
        ChartMark { rows: self.rows.len(), state: self.state, begun: self.begun }
    }

    /// Goes back to an earlier place.
    pub(in crate::constraints) fn go_back(&mut self, mark: ChartMark) {
        if self.rows.len() != mark.rows {
            self.items -= self.rows[mark.rows..].iter().map(|row| row.items.len()).sum::<usize>();
            self.rows.truncate(mark.rows);
            self.last = None;
        }
        (self.state, self.begun) = (mark.state, mark.begun);
    }

    /// Continues with some bytes; false where that is not possible, or takes too much.
    pub(in crate::constraints) fn push(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| self.push_byte(*byte)) && !self.lexer.has_error()
    }

    fn push_byte(&mut self, byte: u8) -> bool {
        let next = self.lexer.transition(self.state, byte);
        if next.is_dead() {
            // The lexeme before has ended, and another begins.
            let before = self.state;
            if !self.begun || !self.scan(before, false) {
                return false;
            }
            self.state = self.lexer.transition(self.state, byte);
            self.begun = true;
            if self.state.is_dead() {
                return false;
            }
            if self.state.has_lowest_match() {
                let state = self.state;
                return self.scan(state, true);
            }
            return true;
        }
        if next.has_lowest_match() {
            return self.scan(next, true);
        }
        (self.state, self.begun) = (next, true);
        true
    }

    /// Continues behind the lexemes that end in a state of the lexer.
    fn scan(&mut self, state: StateID, lazy: bool) -> bool {
        let state = self.lexer.state_desc(state);
        let lexemes = if lazy { &state.lazy_accepting } else { &state.greedy_accepting };
        let shape = Arc::clone(&self.shape);
        let row = &self.rows[self.rows.len() - 1];
        let mut items = Vec::new();
        for (place, origin) in &row.items {
            let next = shape.places[*place as usize].next;
            if next
                .and_then(|next| shape.symbols[next as usize].lexeme)
                .is_some_and(|one| lexemes.contains(one))
            {
                items.push((place + 1, *origin));
            }
        }
        !items.is_empty() && self.add_row(items)
    }

    /// Adds a row with these items and all that follow from them.
    fn add_row(&mut self, mut items: Vec<(u32, u32)>) -> bool {
        let shape = Arc::clone(&self.shape);
        let here = self.rows.len() as u32;
        let mut known: HashSet<(u32, u32)> = items.iter().copied().collect();
        let mut waiting: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut complete = false;
        let mut at = 0;
        while let Some((place, origin)) = items.get(at).copied() {
            if self.items + items.len() > MAX_ITEMS {
                return false;
            }
            let mut add = |item| {
                if known.insert(item) {
                    items.push(item);
                }
            };
            match shape.places[place as usize].next {
                None => {
                    let left = shape.places[place as usize].left;
                    complete |= left == START && origin == 0;
                    // A production that begins here is empty, which the cost of its symbol includes.
                    if origin < here {
                        let row = &self.rows[origin as usize];
                        for item in row.waiting.get(&left).into_iter().flatten() {
                            let (place, origin) = row.items[*item as usize];
                            add((place + 1, origin));
                        }
                    }
                }
                Some(next) => {
                    waiting.entry(next).or_default().push(at as u32);
                    let symbol = &shape.symbols[next as usize];
                    symbol.rules.iter().for_each(|rule| add((*rule, here)));
                    if symbol.nullable {
                        add((place + 1, origin));
                    }
                }
            }
            at += 1;
        }
        let mut lexemes = LexemeSet::new(self.lexemes);
        for next in waiting.keys() {
            shape.symbols[*next as usize].lexeme.into_iter().for_each(|lexeme| lexemes.add(lexeme));
        }
        let start = self.lexer.initial_state(&lexemes);
        self.items += items.len();
        let behind = self.least_behind(&items);
        self.rows.push(ChartRow { items, waiting, behind, complete });
        (self.state, self.begun, self.last) = (start, false, None);
        true
    }

    /// The least that comes behind each symbol that the items of a new row wait for.
    fn least_behind(&self, items: &[(u32, u32)]) -> HashMap<u32, (Cost, Option<u32>)> {
        let here = self.rows.len() as u32;
        let mut behind = HashMap::new();
        // Items of productions that begin here, by their symbol.
        let mut own: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut open = BinaryHeap::new();
        if here == 0 {
            open.push(Reverse((0, START, None)));
        }
        let through = |item: u32, behind: Cost| {
            let place = items[item as usize].0 as usize;
            let next = self.shape.places[place].next?;
            let cost = self.shape.places[place + 1].rest.saturating_add(behind);
            (cost != NEVER).then_some(Reverse((cost, next, Some(item))))
        };
        for (item, (place, origin)) in (0..).zip(items) {
            let left = self.shape.places[*place as usize].left;
            if *origin == here {
                own.entry(left).or_default().push(item);
            } else if let Some((cost, _)) = self.rows[*origin as usize].behind.get(&left) {
                open.extend(through(item, *cost));
            }
        }
        while let Some(Reverse((cost, symbol, item))) = open.pop() {
            if behind.contains_key(&symbol) {
                continue;
            }
            behind.insert(symbol, (cost, item));
            for item in own.get(&symbol).into_iter().flatten() {
                open.extend(through(*item, cost));
            }
        }
        behind
    }

    /// A shortest text that leads from here to the end; None where there is none, or the search takes too
    /// much.
    pub(in crate::constraints) fn closing(&mut self) -> Option<Vec<u8>> {
        let row = self.rows.len() - 1;
        if !self.begun && self.rows[row].complete {
            return Some(Vec::new());
        }
        let here = (row, self.state, self.begun);
        if self.last.as_ref().is_some_and(|(row, state, begun, _)| (*row, *state, *begun) != here) {
            self.last = None;
        }
        if self.last.is_none() {
            let end = self.next_end();
            self.last = Some((row, self.state, self.begun, end));
        }
        let (.., end) = self.last.as_ref()?;
        let (text, mut item) = end.clone()?;
        let mut text = text.into_vec();
        let mut row = row as u32;
        loop {
            let (place, origin) = self.rows[row as usize].items[item as usize];
            self.shape.write_rest(place + 1, &mut text)?;
            if text.len() > MAX_TEXT {
                return None;
            }
            let left = self.shape.places[place as usize].left;
            let (_, next) = self.rows[origin as usize].behind.get(&left)?;
            match next {
                None => return Some(text),
                Some(next) => (row, item) = (origin, *next),
            }
        }
    }

    /// The end of the next lexeme that makes the whole text shortest.
    fn next_end(&mut self) -> Option<LexemeEnd> {
        let row = &self.rows[self.rows.len() - 1];
        // For each lexeme, the cheapest of the symbols that it stands for.
        let mut behind: HashMap<LexemeIdx, (Cost, u32)> = HashMap::new();
        for (symbol, (cost, item)) in &row.behind {
            let (Some(lexeme), Some(item)) = (self.shape.symbols[*symbol as usize].lexeme, item) else {
                continue;
            };
            let known = behind.entry(lexeme).or_insert((*cost, *item));
            *known = (*known).min((*cost, *item));
        }
        let bytes = |lexeme| behind.get(&lexeme).map_or(u64::MAX, |(cost, _)| cost & u64::from(u32::MAX));
        let mut steps = self.ends.steps();
        let ends = self.ends.find(&mut self.lexer, self.state, self.begun, bytes, &mut steps);
        if self.lexer.has_error() {
            return None;
        }
        let trie = self.words.tok_trie();
        let ends = ends.into_iter().filter_map(|(lexeme, text)| {
            let (behind, item) = behind.get(&lexeme)?;
            Some((cost(trie, &text).saturating_add(*behind), lexeme.as_usize(), text, *item))
        });
        let (.., text, item) = ends.min()?;
        Some((text, item))
    }
}
