//! A JSON schema as a graph: the schemas inside each schema, and those that it refers to. Before a document
//! is checked, the graph bounds the work: the crate that checks has no limit of its own, and a few lines of
//! schema can lead it through the same places an exponential number of times.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::pattern_size::PatternSizes;
use super::patterns::NamePattern;
use super::plain::{is_draft, unescaped};
use super::{invalid, unevaluated};
use crate::Error;

/// Longest path through schemas that apply to the same part of a document.
const MAX_CHAIN: usize = 200;
/// Most schemas that are applied while a document is checked, by an upper bound.
const MAX_CHECKS: u64 = 500_000;
/// Bytes of a string, values of an enumeration, and steps of a pattern that count as one schema.
const STRING_BYTES: u64 = 4096;
const VALUES: u64 = 256;
const STEPS: u64 = 500;
/// Keywords for which the crate matches the names of members with their patterns.
const NAME_PASSES: u64 = 3;

/// Keywords whose value is a schema for the same part of the document.
const SAME: [&str; 4] = ["not", "if", "then", "else"];
/// Keywords whose value is a list of such schemas.
const SAME_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// Keywords whose value is a schema for items.
const ITEMS: [&str; 4] = ["items", "additionalItems", "contains", "unevaluatedItems"];
/// Keywords whose value is a schema for members.
const MEMBERS: [&str; 3] = ["additionalProperties", "propertyNames", "unevaluatedProperties"];
/// Keywords of these that evaluate some of the items and members, for `unevaluatedItems` and
/// `unevaluatedProperties`.
const EVALUATING: [&str; 3] = ["contains", "unevaluatedItems", "unevaluatedProperties"];

/// The schemas inside a schema, by the part of the document that they apply to.
#[derive(Debug, Default)]
struct SchemaNode {
    /// Schemas that apply to the same part of a document: indexes of their nodes.
    same: Vec<usize>,
    /// The one of them that a reference leads to.
    referred: Option<usize>,
    /// Schemas that apply to each item of an array.
    items: Vec<usize>,
    /// Schemas that apply to an item of an array by its index.
    item: Vec<Vec<usize>>,
    /// Schemas that apply to each member of an object.
    members: Vec<usize>,
    /// Schemas that apply to one member of an object.
    member: HashMap<String, usize>,
    /// Schemas for items and members that are applied again to find which of them are evaluated.
    evaluating: Vec<usize>,
    /// Whether it asks which items or members are evaluated.
    asks: bool,
    /// The patterns for names of members.
    names: Vec<Arc<NamePattern>>,
    /// Number of values that it enumerates.
    values: u64,
    /// The types that it allows for the document, if these are checked before all else.
    types: Option<Vec<String>>,
}

/// All schemas that can be reached from the first.
#[derive(Debug)]
pub(crate) struct Graph {
    nodes: Vec<SchemaNode>,
}

impl Graph {
    /// Follows all references.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for references that lead out of the schema or in a circle, for chains of
    /// them that are too long, and for what would take too much to compile.
    pub(super) fn new(root: &Value) -> Result<Graph, Error> {
        let mut builder = Builder {
            root,
            numbers: HashMap::new(),
            found: Vec::new(),
            sizes: PatternSizes::default(),
            names: HashMap::new(),
        };
        builder.number(root);
        let mut nodes = Vec::new();
        while let Some(schema) = builder.found.get(nodes.len()).copied() {
            nodes.push(builder.node(schema)?);
        }
        let graph = Graph { nodes };
        graph.check_chains()?;
        unevaluated::check(root)?;
        Ok(graph)
    }

    /// Processes the schemas in topological order, so that those in a circle are left over.
    fn check_chains(&self) -> Result<(), Error> {
        let mut users = vec![0usize; self.nodes.len()];
        self.nodes.iter().flat_map(|node| &node.same).for_each(|same| users[*same] += 1);
        let mut ready: Vec<usize> = (0..users.len()).filter(|index| users[*index] == 0).collect();
        let mut lengths = vec![1usize; self.nodes.len()];
        let mut done = 0;
        while let Some(index) = ready.pop() {
            done += 1;
            for same in &self.nodes[index].same {
                lengths[*same] = lengths[*same].max(lengths[index] + 1);
                users[*same] -= 1;
                if users[*same] == 0 {
                    ready.push(*same);
                }
            }
        }
        if done < self.nodes.len() {
            return invalid("the schema refers to itself without going on to an item or a property");
        }
        if lengths.iter().any(|length| *length > MAX_CHAIN) {
            return invalid(format!("the schema has more than {MAX_CHAIN} references in a row"));
        }
        Ok(())
    }

    /// Whether a document can be checked in bounded time: counts the schemas that are applied, as if no check
    /// ended early except those of types.
    pub(super) fn is_checked_soon(&self, document: &Value) -> bool {
        self.is_checked_within(MAX_CHECKS, document)
    }

    /// Whether at most `most` schemas are applied.
    pub(super) fn is_checked_within(&self, most: u64, document: &Value) -> bool {
        let mut count = Count { graph: self, most, applied: HashMap::new(), evaluated: HashMap::new() };
        count.applied(0, document).is_some_and(|cost| cost <= most)
    }
}

/// The schemas that are applied while a document is checked, counted.
struct Count<'a> {
    graph: &'a Graph,
    most: u64,
    /// Costs by the index of a schema and the address of a part of the document: of applying the schema, and
    /// of finding what it evaluates.
    applied: HashMap<(usize, usize), u64>,
    evaluated: HashMap<(usize, usize), u64>,
}

impl Count<'_> {
    /// The cost of applying a schema. Recurses along chains and into the document, both of which are bounded.
    /// `None` where the cost is too high.
    fn applied(&mut self, index: usize, document: &Value) -> Option<u64> {
        let node = &self.graph.nodes[index];
        if node.types.as_ref().is_some_and(|types| !types.iter().any(|name| is_of_type(document, name))) {
            return Some(1);
        }
        let key = (index, std::ptr::from_ref(document).addr());
        if let Some(cost) = self.applied.get(&key) {
            return Some(*cost);
        }
        let mut cost = 1 + node.values / VALUES + self.of_names(node, document)?;
        if let Value::String(text) = document {
            cost += text.len() as u64 / STRING_BYTES;
        }
        for same in &node.same {
            cost = self.sum(cost, *same, document)?;
        }
        if let Value::Array(items) = document {
            for (place, item) in items.iter().enumerate() {
                for schema in &node.items {
                    cost = self.sum(cost, *schema, item)?;
                }
                for schema in node.item.iter().filter_map(|schemas| schemas.get(place)) {
                    cost = self.sum(cost, *schema, item)?;
                }
            }
        }
        if let Value::Object(members) = document {
            for (key, member) in members {
                for schema in &node.members {
                    cost = self.sum(cost, *schema, member)?;
                }
                if let Some(schema) = node.member.get(key) {
                    cost = self.sum(cost, *schema, member)?;
                }
            }
        }
        if node.asks && (document.is_array() || document.is_object()) {
            let again = self.evaluated(index, document)?;
            cost = self.within(cost.saturating_add(again))?;
        }
        self.applied.insert(key, cost);
        Some(cost)
    }

    /// The cost of finding what a schema evaluates: the crate applies all schemas in it for the same part of
    /// the document once more, and asks each of them in turn.
    fn evaluated(&mut self, index: usize, document: &Value) -> Option<u64> {
        let key = (index, std::ptr::from_ref(document).addr());
        if let Some(cost) = self.evaluated.get(&key) {
            return Some(*cost);
        }
        let node = &self.graph.nodes[index];
        let mut cost = 1 + self.of_names(node, document)?;
        for same in &node.same {
            if node.referred != Some(*same) {
                cost = self.sum(cost, *same, document)?;
            }
            let inside = self.evaluated(*same, document)?;
            cost = self.within(cost.saturating_add(inside))?;
        }
        for schema in &node.evaluating {
            match document {
                Value::Array(items) => {
                    for item in items {
                        cost = self.sum(cost, *schema, item)?;
                    }
                }
                Value::Object(members) => {
                    for member in members.values() {
                        cost = self.sum(cost, *schema, member)?;
                    }
                }
                _ => {}
            }
        }
        self.evaluated.insert(key, cost);
        Some(cost)
    }

    /// The cost with that of applying another schema.
    fn sum(&mut self, cost: u64, index: usize, document: &Value) -> Option<u64> {
        let other = self.applied(index, document)?;
        self.within(cost.saturating_add(other))
    }

    fn within(&self, cost: u64) -> Option<u64> {
        let known = self.applied.len() + self.evaluated.len();
        (cost <= self.most && known as u64 <= self.most).then_some(cost)
    }

    /// The cost of the patterns for names of members.
    fn of_names(&self, node: &SchemaNode, document: &Value) -> Option<u64> {
        let Value::Object(members) = document else { return Some(0) };
        let mut steps = 0u64;
        for (pattern, name) in node.names.iter().flat_map(|one| members.keys().map(move |name| (one, name))) {
            steps = steps.saturating_add(pattern.steps(name).saturating_mul(NAME_PASSES));
            if steps / STEPS > self.most {
                return None;
            }
        }
        Some(steps / STEPS)
    }
}

fn is_of_type(document: &Value, name: &str) -> bool {
    match name {
        "null" => document.is_null(),
        "boolean" => document.is_boolean(),
        "number" | "integer" => document.is_number(),
        "string" => document.is_string(),
        "array" => document.is_array(),
        "object" => document.is_object(),
        _ => true,
    }
}

/// Numbers schemas as they are found.
struct Builder<'a> {
    root: &'a Value,
    /// By their addresses in memory.
    numbers: HashMap<usize, usize>,
    found: Vec<&'a Value>,
    sizes: PatternSizes<'a>,
    names: HashMap<&'a str, Arc<NamePattern>>,
}

impl<'a> Builder<'a> {
    fn number(&mut self, schema: &'a Value) -> usize {
        let next = self.found.len();
        let number = *self.numbers.entry(std::ptr::from_ref(schema).addr()).or_insert(next);
        if number == next {
            self.found.push(schema);
        }
        number
    }

    fn node(&mut self, schema: &'a Value) -> Result<SchemaNode, Error> {
        let mut node = SchemaNode::default();
        let Value::Object(keywords) = schema else { return Ok(node) };
        node.asks = unevaluated::asks(schema);
        for (keyword, value) in keywords {
            if EVALUATING.contains(&keyword.as_str()) {
                node.evaluating.push(self.number(value));
            }
            match (keyword.as_str(), value) {
                ("pattern", Value::String(pattern)) => self.sizes.add(pattern)?,
                // The document is a schema itself, so all its items and members are checked alike.
                ("$ref", Value::String(reference)) if is_draft(reference) => {
                    let own = self.number(schema);
                    node.items.push(own);
                    node.members.push(own);
                }
                ("$ref", Value::String(reference)) => {
                    let target = self.target(reference)?;
                    let target = self.number(target);
                    node.same.push(target);
                    node.referred = Some(target);
                }
                ("type", Value::String(name)) => node.types = Some(vec![name.clone()]),
                ("type", Value::Array(names)) => {
                    node.types = Some(names.iter().filter_map(Value::as_str).map(str::to_owned).collect());
                }
                ("properties", Value::Object(members)) => {
                    for (key, member) in members {
                        node.member.insert(key.clone(), self.number(member));
                    }
                }
                ("patternProperties", Value::Object(members)) => {
                    node.members.extend(members.values().map(|member| self.number(member)));
                    for pattern in members.keys() {
                        node.names.push(self.name(pattern)?);
                    }
                }
                ("prefixItems" | "items", Value::Array(items)) => {
                    node.item.push(items.iter().map(|item| self.number(item)).collect());
                }
                ("enum", Value::Array(values)) => node.values = values.len() as u64,
                (name, Value::Array(schemas)) if SAME_LISTS.contains(&name) => {
                    node.same.extend(schemas.iter().map(|schema| self.number(schema)));
                }
                (name, schema) if SAME.contains(&name) => node.same.push(self.number(schema)),
                (name, schema) if ITEMS.contains(&name) => node.items.push(self.number(schema)),
                (name, schema) if MEMBERS.contains(&name) => node.members.push(self.number(schema)),
                ("dependentSchemas" | "dependencies", Value::Object(members)) => {
                    let schemas = members.values().filter(|member| !member.is_array());
                    node.same.extend(schemas.map(|member| self.number(member)));
                }
                _ => {}
            }
        }
        Ok(node)
    }

    /// The pattern for names of members, which is made once.
    fn name(&mut self, pattern: &'a str) -> Result<Arc<NamePattern>, Error> {
        self.sizes.add(pattern)?;
        let made = self.names.entry(pattern).or_insert_with(|| Arc::new(NamePattern::new(pattern)));
        Ok(Arc::clone(made))
    }

    /// The part that `#` or `#/…` refers to.
    fn target(&self, reference: &str) -> Result<&'a Value, Error> {
        let pointer = reference.strip_prefix('#').filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let Some(pointer) = pointer else {
            return invalid(
                "the schema refers to something that is not part of it: references begin with \"#/\"",
            );
        };
        let target = self.root.pointer(&unescaped(pointer));
        target.map_or_else(|| invalid("the schema refers to a part of it that is not there"), Ok)
    }
}
