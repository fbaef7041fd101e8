//! Running untrusted templates.
//!
//! Templates come with model files and are programs. These are bounded: the length of the source,
//! instructions (fuel), nesting of calls, the stack (compiling and dropping a deep expression recurses, so it
//! happens on a thread with a large stack), and memory (see `budget.rs` and `environment.rs`). For memory,
//! the compiled program is rewritten so that every operation that makes a value, or reads all of one, goes
//! through the budget; minijinja has no hook for that. The test `fuel_and_depth_alone_bound_no_memory` shows
//! the need: two instructions double a value.

use std::borrow::Cow;
use std::sync::Arc;

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Token, Vm, WhitespaceConfig, make_string_output, parse,
    tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};

use super::budget::{NODE_BYTES, TemplateBudget, refuse};
use super::environment;
use super::python;

/// Templates of real models have up to about 20,000 bytes.
pub(super) const MAX_SOURCE_BYTES: usize = 1 << 15;
/// Real tags have a hundred or two. Compiling an expression takes time that grows with the square of its
/// depth.
const MAX_TAG_TOKENS: usize = 2000;
/// The largest factor of a product of constants: templates repeat text to make an indentation.
const MAX_FACTOR: u64 = 256;
/// Names in expressions that are no variables.
const CONSTANTS: [&str; 13] =
    ["true", "True", "false", "False", "none", "None", "and", "or", "not", "in", "is", "if", "else"];
/// Operators whose cost is that of reading their operands.
const COMPARISONS: [&str; 6] = ["==", "!=", "<", "<=", ">", ">="];
pub(super) const FUEL: u64 = 100_000;
pub(super) const MAX_CALL_DEPTH: usize = 64;
/// A stack that is large enough for the deepest nesting in a source of the size above.
const STACK_BYTES: usize = 1 << 25;

/// The date of the stopped clock, by format code: an answer must not depend on the day.
const DATE: [(&str, &str); 12] = [
    ("%Y", "2024"),
    ("%y", "24"),
    ("%m", "07"),
    ("%B", "July"),
    ("%b", "Jul"),
    ("%d", "26"),
    ("%A", "Friday"),
    ("%a", "Fri"),
    ("%H", "00"),
    ("%I", "12"),
    ("%M", "00"),
    ("%S", "00"),
];
const MAX_DATE_BYTES: usize = 256;
const MAX_MESSAGE_CHARACTERS: usize = 1000;

/// The settings with which a template is compiled and run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    /// Its name in messages.
    name: &'static str,
    whitespace: WhitespaceConfig,
    undefined: UndefinedBehavior,
    /// Whether it has a clock, stopped at [`DATE`].
    with_date: bool,
    /// Whether it may mark the assistant's messages with `{% generation %}`.
    with_generation: bool,
}

impl Dialect {
    /// Chat templates, as Hugging Face and llama.cpp run them.
    pub(super) fn chat(with_date: bool) -> Dialect {
        Dialect {
            name: "chat_template",
            whitespace: WhitespaceConfig {
                keep_trailing_newline: false,
                lstrip_blocks: true,
                trim_blocks: true,
            },
            undefined: UndefinedBehavior::Lenient,
            with_date,
            with_generation: true,
        }
    }

    /// Prompt templates, as jinja2 runs them with its default settings.
    pub(super) fn prompt(strict: bool) -> Dialect {
        Dialect {
            name: "prompt",
            whitespace: WhitespaceConfig {
                keep_trailing_newline: false,
                lstrip_blocks: false,
                trim_blocks: false,
            },
            undefined: if strict { UndefinedBehavior::Strict } else { UndefinedBehavior::Lenient },
            with_date: false,
            with_generation: false,
        }
    }
}

/// The reason why there is no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TemplateFailure {
    /// The template cannot be compiled.
    Compiling(String),
    /// The template uses a variable that has no value.
    Undefined(String),
    /// The template exceeds its limits, or raises an error itself.
    Running(String),
}

impl TemplateFailure {
    pub(super) fn into_message(self) -> String {
        match self {
            TemplateFailure::Compiling(message)
            | TemplateFailure::Undefined(message)
            | TemplateFailure::Running(message) => message,
        }
    }

    fn running(error: &Error) -> TemplateFailure {
        match error.kind() {
            ErrorKind::UndefinedError => TemplateFailure::Undefined(message(error)),
            _ => TemplateFailure::Running(message(error)),
        }
    }
}

/// The text that a chat template makes of the context. The error is a message.
/// The template sees a clock, stopped at [`DATE`], only `with_date`.
pub(super) fn render(source: &str, context: &Value, with_date: bool) -> Result<String, String> {
    render_as(Dialect::chat(with_date), source, context).map_err(TemplateFailure::into_message)
}

/// The text that a template makes of the context.
pub(super) fn render_as(dialect: Dialect, source: &str, context: &Value) -> Result<String, TemplateFailure> {
    apart(source, || {
        let source = &dialect.source(source);
        let program = dialect.compile(source)?;
        dialect.run(&program, context).map_err(|error| TemplateFailure::running(&error))
    })
}

/// Names that a template takes from its context, in their order; functions that it can call are none of them.
pub(super) fn variables(dialect: Dialect, source: &str) -> Result<Vec<String>, TemplateFailure> {
    apart(source, || {
        let source = &dialect.source(source);
        dialect.compile(source)?;
        let environment = environment(&Arc::new(TemplateBudget::default()), dialect);
        let template = environment
            .template_from_str(source)
            .map_err(|error| TemplateFailure::Compiling(message(&error)))?;
        let functions: Vec<&str> = environment.globals().map(|(name, _)| name).collect();
        let mut names: Vec<String> = template.undeclared_variables(false).into_iter().collect();
        names.retain(|name| !functions.contains(&name.as_str()));
        names.sort_unstable();
        Ok(names)
    })
}

/// Does the work on a thread with a large stack.
fn apart<T: Send>(
    source: &str,
    work: impl FnOnce() -> Result<T, TemplateFailure> + Send,
) -> Result<T, TemplateFailure> {
    if source.len() > MAX_SOURCE_BYTES {
        let bytes = source.len();
        return Err(TemplateFailure::Compiling(format!(
            "it has {bytes} bytes, at most {MAX_SOURCE_BYTES} are read"
        )));
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("template".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|error| TemplateFailure::Running(format!("its thread cannot be started: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(TemplateFailure::Running("the template engine panicked".into())))
    })
}

/// The error and its causes in one line.
fn message(error: &Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    // A template may raise an error with a message of any length.
    if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE_CHARACTERS) {
        message.truncate(end);
        message.push('…');
    }
    message
}

impl Dialect {
    fn source(self, source: &str) -> Cow<'_, str> {
        if self.with_generation { without_generation_tags(source) } else { Cow::Borrowed(source) }
    }

    fn compile(self, source: &str) -> Result<Instructions<'_>, TemplateFailure> {
        let compiled = || {
            check_tokens(source, self.whitespace)?;
            let tree = parse(source, self.name, SyntaxConfig, self.whitespace)?;
            let mut generator = CodeGenerator::new(self.name, source);
            generator.compile_stmt(&tree);
            let (program, blocks) = generator.finish();
            if !blocks.is_empty() {
                return Err(refuse("blocks are not supported"));
            }
            rewrite(&program, self.name, source)
        };
        compiled().map_err(|error: Error| TemplateFailure::Compiling(message(&error)))
    }

    fn run(self, program: &Instructions<'_>, context: &Value) -> Result<String, Error> {
        let budget = Arc::new(TemplateBudget::default());
        let environment = environment(&budget, self);
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        let blocks = Default::default();
        Vm::new(&environment).eval(program, context.clone(), &blocks, &mut output, AutoEscape::None)?;
        drop(output);
        Ok(text)
    }
}

/// Refuses sources that would take too much to compile: the limits of a running template do not hold then.
fn check_tokens(source: &str, whitespace: WhitespaceConfig) -> Result<(), Error> {
    let mut tag: Vec<Token<'_>> = Vec::new();
    for token in tokenize(source, false, SyntaxConfig, whitespace) {
        let token = token?.0;
        if matches!(token, Token::TemplateData(_) | Token::VariableStart | Token::BlockStart) {
            check_products(&tag)?;
            tag.clear();
        }
        tag.push(token);
        if tag.len() > MAX_TAG_TOKENS {
            return Err(refuse(format!("a tag has more than {MAX_TAG_TOKENS} words")));
        }
    }
    check_products(&tag)
}

/// Products of constants are made while they are compiled: a tag may have a single one, with a small factor.
fn check_products(tag: &[Token<'_>]) -> Result<(), Error> {
    let mut products = 0;
    for (at, token) in tag.iter().enumerate() {
        if matches!(token, Token::Pow) {
            products += 1;
        }
        if !matches!(token, Token::Mul) {
            continue;
        }
        let (before, after) = (&tag[..at], &tag[at + 1..]);
        if varies(before.iter().rev()) || varies(after.iter()) {
            continue;
        }
        products += 1;
        let small =
            |token: Option<&Token<'_>>| matches!(token, Some(Token::Int(factor)) if *factor <= MAX_FACTOR);
        if products > 1 || !(small(before.last()) || small(after.first())) {
            return Err(refuse("large products of constants are not supported"));
        }
    }
    Ok(())
}

/// Whether an operand contains a variable, so that its value is not known before the template runs. It is
/// read from its end at the operator: a name, or an expression in brackets.
fn varies<'a>(tokens: impl Iterator<Item = &'a Token<'a>>) -> bool {
    let mut depth = 0_usize;
    for token in tokens {
        match token {
            Token::Ident(name) if !CONSTANTS.contains(name) => return true,
            Token::ParenOpen | Token::ParenClose if depth == 0 => depth = 1,
            // Nested brackets: their contents count as well, and it does not matter exactly where they end.
            Token::VariableEnd | Token::BlockEnd | Token::VariableStart | Token::BlockStart => return false,
            _ if depth == 0 => return false,
            Token::ParenOpen | Token::ParenClose => return false,
            _ => {}
        }
    }
    false
}

/// Hugging Face's `{% generation %}` marks the assistant's part for training and has no other effect.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    static TAG: std::sync::LazyLock<Option<regex::Regex>> =
        std::sync::LazyLock::new(|| regex::Regex::new(r"\{%(-?)\s*(end)?generation\s*(-?)%\}").ok());
    let Some(tag) = TAG.as_ref() else { return Cow::Borrowed(source) };
    tag.replace_all(source, |found: &regex::Captures<'_>| {
        let part = |index: usize| found.get(index).map_or("", |part| part.as_str());
        let word = if part(2).is_empty() { "if true" } else { "endif" };
        format!("{{%{} {word} {}%}}", part(1), part(3))
    })
}

fn environment(budget: &Arc<TemplateBudget>, dialect: Dialect) -> Environment<'static> {
    let mut environment = environment::environment(budget);
    environment.set_undefined_behavior(dialect.undefined);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_CALL_DEPTH);
    // The operations that `rewrite` inserts; no template can call them by such names.
    let mine = budget.clone();
    environment.add_function("+", move |left: Value, right: Value| mine.add(&left, &right));
    let mine = budget.clone();
    environment.add_function("~", move |left: Value, right: Value| mine.concatenate(&left, &right));
    let mine = budget.clone();
    environment.add_function("*", move |left: Value, right: Value| python::multiply(&mine, &left, &right));
    let mine = budget.clone();
    environment.add_function("%", move |left: Value, right: Value| python::remainder(&mine, &left, &right));
    for operator in COMPARISONS {
        let mine = budget.clone();
        environment.add_function(operator, move |left: Value, right: Value| {
            mine.comparison(operator, &left, &right)
        });
    }
    let (mine, plain) = (budget.clone(), Environment::new());
    environment
        .add_function("in", move |value: Value, container: Value| mine.contains(&plain, &value, &container));
    let mine = budget.clone();
    environment.add_function("[]", move |value: Value| mine.admit(value));
    let mine = budget.clone();
    environment.add_function(".=", move |value: Value| mine.flat(value));
    let mine = budget.clone();
    environment.set_formatter(move |output, state, value| {
        mine.spend(value.as_str().map_or(NODE_BYTES, str::len))?;
        match value.kind() {
            ValueKind::String => minijinja::escape_formatter(output, state, value),
            _ => minijinja::escape_formatter(output, state, &Value::from(python::text(value)?)),
        }
    });
    environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
        Err(refuse(format!("the template says: {reason}")))
    });
    if dialect.with_date {
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            let date = DATE.iter().fold(format, |text, (code, value)| text.replace(code, value));
            if date.len() > MAX_DATE_BYTES { Err(refuse("the date is too long")) } else { Ok(date) }
        });
    }
    environment
}

/// The program in which every operation that makes or compares values goes through the budget.
fn rewrite<'source>(
    program: &Instructions<'source>,
    name: &'source str,
    source: &'source str,
) -> Result<Instructions<'source>, Error> {
    use Instruction::*;
    let instructions: Vec<&Instruction<'source>> =
        (0..program.len() as u32).filter_map(|index| program.get(index)).collect();
    let mut rewritten: Vec<Instruction<'source>> = Vec::with_capacity(instructions.len() * 2);
    // The place in the new program at which each old instruction begins, for jumps.
    let mut positions: Vec<u32> = Vec::with_capacity(instructions.len() + 1);
    for instruction in instructions {
        positions.push(rewritten.len() as u32);
        match instruction {
            EmitRaw(text) => rewritten.extend([LoadConst(Value::from(*text)), Emit]),
            Add => rewritten.push(CallFunction("+", Some(2))),
            StringConcat => rewritten.push(CallFunction("~", Some(2))),
            Mul => rewritten.push(CallFunction("*", Some(2))),
            Rem => rewritten.push(CallFunction("%", Some(2))),
            Eq => rewritten.push(CallFunction("==", Some(2))),
            Ne => rewritten.push(CallFunction("!=", Some(2))),
            Lt => rewritten.push(CallFunction("<", Some(2))),
            Lte => rewritten.push(CallFunction("<=", Some(2))),
            Gt => rewritten.push(CallFunction(">", Some(2))),
            Gte => rewritten.push(CallFunction(">=", Some(2))),
            In => rewritten.push(CallFunction("in", Some(2))),
            BuildList(_) | BuildMap(_) | Slice => {
                rewritten.extend([instruction.clone(), CallFunction("[]", Some(1))]);
            }
            SetAttr(_) => rewritten.extend([Swap, CallFunction(".=", Some(1)), Swap, instruction.clone()]),
            CallBlock(_) | LoadBlocks | Include(_) | ExportLocals | FastSuper => {
                return Err(refuse("other templates cannot be included"));
            }
            other => rewritten.push(other.clone()),
        }
    }
    positions.push(rewritten.len() as u32);
    let mut made = Instructions::new(name, source);
    for mut instruction in rewritten {
        if let Iterate(target)
        | Jump(target)
        | JumpIfFalse(target)
        | JumpIfFalseOrPop(target)
        | JumpIfTrueOrPop(target)
        | BuildMacro(_, target, _) = &mut instruction
        {
            *target = positions.get(*target as usize).copied().unwrap_or(u32::MAX);
        }
        made.add(instruction);
    }
    Ok(made)
}
