//! The productions of a grammar, and the shortest text of each of its symbols.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use llguidance::earley::lexerspec::LexemeIdx;
use llguidance::earley::regexvec::{LexemeSet, RegexVec};
use llguidance::earley::{CGrammar, CSymIdx};
use toktrie::TokTrie;

use super::ends::Ends;
use super::words::{Cost, NEVER, cost};

/// Most steps of the lexer to find the shortest texts of all lexemes.
const MAX_STEPS: usize = 400_000;
/// Number of states after which a lexer is replaced by a new one: they take some kilobytes each.
const MAX_STATES: usize = 4_000;
/// Longest text of a symbol, in bytes.
const MAX_TEXT: usize = 16 << 10;

/// A grammar.
pub(super) struct GrammarShape {
    pub(super) symbols: Vec<GrammarSymbol>,
    /// The right sides of all productions, each with a place at its end.
    pub(super) places: Vec<ShapePlace>,
    /// Shortest texts by lexeme.
    texts: HashMap<LexemeIdx, Box<[u8]>>,
}

/// The first symbol is the start of the grammar.
pub(super) const START: u32 = 0;

/// A symbol of a grammar.
pub(super) struct GrammarSymbol {
    /// The places at which its productions begin, except for the empty one.
    pub(super) rules: Vec<u32>,
    pub(super) nullable: bool,
    /// The lexeme that stands for it in a text, if it is terminal.
    pub(super) lexeme: Option<LexemeIdx>,
    /// The cost of its shortest text.
    cost: Cost,
    /// The production of its shortest text; None where that is empty, or the symbol terminal.
    best: Option<u32>,
}

/// A place in a production.
pub(super) struct ShapePlace {
    /// The symbol that comes next; None at the end.
    pub(super) next: Option<u32>,
    /// The symbol on the left.
    pub(super) left: u32,
    /// The cost of all symbols behind that one.
    pub(super) rest: Cost,
}

impl GrammarShape {
    /// The shape of a grammar; None where it has too many places, or its lexemes take too many steps.
    pub(super) fn new(
        grammar: &CGrammar,
        lexer: &RegexVec,
        ends: &Ends,
        trie: &TokTrie,
    ) -> Option<GrammarShape> {
        let spec = grammar.lexer_spec();
        if grammar.parametric() || spec.has_stop || spec.has_max_tokens {
            return None;
        }
        let mut shape = GrammarShape { symbols: Vec::new(), places: Vec::new(), texts: HashMap::new() };
        let mut found = FoundSymbols { numbers: HashMap::new(), symbols: Vec::new() };
        found.number(grammar.start());
        while let Some(index) = found.symbols.get(shape.symbols.len()).copied() {
            let left = shape.symbols.len() as u32;
            let data = grammar.sym_data(index);
            let mut rules = Vec::with_capacity(data.rules.len());
            for rule in &data.rules {
                rules.push(shape.places.len() as u32);
                let (right, ..) = grammar.rule_rhs(*rule);
                let nexts = right.iter().map(|symbol| Some(found.number(*symbol))).chain([None]);
                shape.places.extend(nexts.map(|next| ShapePlace { next, left, rest: 0 }));
            }
            shape.symbols.push(GrammarSymbol {
                rules,
                nullable: data.is_nullable,
                lexeme: data.lexeme,
                cost: NEVER,
                best: None,
            });
        }
        shape.find_texts(spec.lexemes.len(), lexer, ends)?;
        shape.find_costs(trie);
        Some(shape)
    }

    /// The shortest text of each lexeme that has one.
    fn find_texts(&mut self, lexemes: usize, lexer: &RegexVec, ends: &Ends) -> Option<()> {
        let mut steps = MAX_STEPS;
        let mut own = lexer.clone();
        let mut ends = ends.anew();
        for lexeme in self.symbols.iter().filter_map(|symbol| symbol.lexeme) {
            if self.texts.contains_key(&lexeme) {
                continue;
            }
            if own.stats().num_states > MAX_STATES {
                own = lexer.clone();
                ends = ends.anew();
            }
            let mut only = LexemeSet::new(lexemes);
            only.add(lexeme);
            let state = own.initial_state(&only);
            let most = steps.min(ends.steps());
            let mut left = most;
            let found = ends.find(&mut own, state, false, |_| 0, &mut left);
            if own.has_error() || left == 0 {
                return None;
            }
            steps -= most - left;
            self.texts.extend(found.into_iter().filter(|(end, _)| *end == lexeme));
        }
        Some(())
    }

    /// The costs of symbols, the lowest first: the parts of a symbol cost less than the symbol itself.
    fn find_costs(&mut self, trie: &TokTrie) {
        struct GrammarRule {
            left: u32,
            first: u32,
            missing: usize,
            sum: Cost,
        }
        let mut rules = Vec::new();
        let mut users: Vec<Vec<u32>> = vec![Vec::new(); self.symbols.len()];
        let mut open = BinaryHeap::new();
        for (index, symbol) in (0..).zip(&self.symbols) {
            if symbol.nullable {
                open.push(Reverse((0, index, None)));
            } else if let Some(text) = symbol.lexeme.and_then(|lexeme| self.texts.get(&lexeme)) {
                open.push(Reverse((cost(trie, text), index, None)));
            }
            for first in &symbol.rules {
                let right = self.places[*first as usize..].iter().map_while(|place| place.next);
                let mut missing = 0;
                for next in right {
                    users[next as usize].push(rules.len() as u32);
                    missing += 1;
                }
                rules.push(GrammarRule { left: index, first: *first, missing, sum: 0 });
            }
        }
        while let Some(Reverse((cost, index, best))) = open.pop() {
            let symbol = &mut self.symbols[index as usize];
            if symbol.cost != NEVER || cost == NEVER {
                continue;
            }
            (symbol.cost, symbol.best) = (cost, best);
            for rule in &users[index as usize] {
                let rule = &mut rules[*rule as usize];
                rule.sum = rule.sum.saturating_add(cost);
                rule.missing -= 1;
                if rule.missing == 0 {
                    open.push(Reverse((rule.sum, rule.left, Some(rule.first))));
                }
            }
        }
        let mut rest = 0;
        for place in self.places.iter_mut().rev() {
            rest = place.next.map_or(0, |next| self.symbols[next as usize].cost.saturating_add(rest));
            place.rest = rest;
        }
    }

    /// Adds the shortest text from a place to the end of its production.
    pub(super) fn write_rest(&self, place: u32, text: &mut Vec<u8>) -> Option<()> {
        let mut open = vec![place];
        while let Some(place) = open.pop() {
            let Some(next) = self.places[place as usize].next else { continue };
            open.push(place + 1);
            let symbol = &self.symbols[next as usize];
            match symbol.best {
                _ if symbol.cost == NEVER => return None,
                Some(rule) => open.push(rule),
                None if symbol.nullable => {}
                None => text.extend_from_slice(self.texts.get(&symbol.lexeme?)?),
            }
            if text.len() > MAX_TEXT || open.len() > MAX_TEXT {
                return None;
            }
        }
        Some(())
    }
}

/// Symbols by our numbers.
struct FoundSymbols {
    numbers: HashMap<CSymIdx, u32>,
    symbols: Vec<CSymIdx>,
}

impl FoundSymbols {
    fn number(&mut self, symbol: CSymIdx) -> u32 {
        let symbols = &mut self.symbols;
        *self.numbers.entry(symbol).or_insert_with(|| {
            symbols.push(symbol);
            symbols.len() as u32 - 1
        })
    }
}
