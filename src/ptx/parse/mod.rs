//! PTX text to a [`Module`].
//!
//! The text may come from anywhere: nothing recurses without bound, and nothing is allocated that is larger than a
//! constant times the text.

mod declarations;
mod entries;
mod functions;
mod operands;
mod statements;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicU64};

use super::lex::{Located, Token, tokens};
use super::module::*;

/// Most bytes of shared memory that a block can have, on any target.
pub(super) const MAX_SHARED: u64 = 232_448;
/// Most braces around an instruction or an initial value.
const MAX_DEPTH: usize = 64;

type Parsed<T> = Result<T, ParseError>;

impl Module {
    /// Parses PTX text.
    ///
    /// # Errors
    /// A [`ParseError`] with the line: for text that is not PTX, a version newer than 8.8, an unknown target, and for any
    /// instruction or modifier that the machine does not know.
    pub fn parse(text: &str) -> Parsed<Module> {
        let mut parser = Parser::new(tokens(text)?);
        let (version, target) = parser.header()?;
        parser.find_functions()?;
        let mut entries: Vec<Arc<Entry>> = Vec::new();
        while parser.at < parser.tokens.len() {
            if let Some(entry) = parser.declaration()? {
                if entries.iter().any(|e| e.name == entry.name) {
                    return Err(parser.error(format!("there are two entries `{}`", entry.name)));
                }
                entries.push(Arc::new(entry));
            }
        }
        Ok(Module { version, target, entries })
    }
}

/// A pair of braces: the names declared in it.
#[derive(Default)]
struct Scope {
    /// Declared registers; with a count, all of `name0…`.
    registers: HashMap<String, Declared>,
    slots: HashMap<String, Operand>,
    variables: HashMap<String, usize>,
    labels: HashMap<String, usize>,
    /// Labels that were named: name, index among the entry's labels, line.
    wanted: Vec<(String, usize, u32)>,
}

#[derive(Clone, Copy)]
struct Declared {
    count: Option<u64>,
    predicate: bool,
}

/// A function, which is read anew wherever it is called.
struct Function {
    name: String,
    results: Vec<Variable>,
    parameters: Vec<Variable>,
    /// The token behind the brace that opens it; none if it is only declared.
    body: Option<usize>,
}

/// The entry that is being read.
#[derive(Default)]
struct Body {
    scopes: Vec<Scope>,
    variables: Vec<Variable>,
    code: Vec<Instruction>,
    labels: Vec<usize>,
    registers: u32,
    predicates: u32,
    /// Functions inside whose calls it is, outermost first.
    calls: Vec<usize>,
    /// The label behind the innermost call, to which a `ret` goes.
    exit: Option<usize>,
    /// The module's variables among the entry's.
    globals: HashMap<String, usize>,
}

struct Parser<'a> {
    tokens: Vec<Located<'a>>,
    at: usize,
    /// The module's number.
    module: u64,
    /// Variables of the module.
    globals: Vec<Variable>,
    names: HashMap<String, usize>,
    functions: Vec<Function>,
    body: Body,
}

impl<'a> Parser<'a> {
    fn new(tokens: Vec<Located<'a>>) -> Self {
        static MODULES: AtomicU64 = AtomicU64::new(0);
        let module = MODULES.fetch_add(1, atomic::Ordering::Relaxed);
        Parser {
            tokens,
            at: 0,
            module,
            globals: Vec::new(),
            names: HashMap::new(),
            functions: Vec::new(),
            body: Body::default(),
        }
    }

    fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens.get(self.at.min(last)).map_or(1, |t| t.1)
    }

    fn error(&self, reason: impl Into<String>) -> ParseError {
        ParseError { line: self.line(), reason: reason.into() }
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|t| t.0)
    }

    fn next(&mut self) -> Parsed<Token<'a>> {
        let token = self.peek().ok_or_else(|| self.error("the text ends too early"))?;
        self.at += 1;
        Ok(token)
    }

    fn accept(&mut self, c: char) -> bool {
        let found = self.peek() == Some(Token::Punctuation(c));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, c: char) -> Parsed<()> {
        if self.accept(c) { Ok(()) } else { Err(self.unexpected(&format!("`{c}`"))) }
    }

    fn unexpected(&self, wanted: &str) -> ParseError {
        match self.peek() {
            Some(Token::Word(w)) => self.error(format!("`{w}` stands where {wanted} should")),
            Some(Token::Punctuation(c)) => self.error(format!("`{c}` stands where {wanted} should")),
            Some(Token::Integer(n)) => self.error(format!("{n} stands where {wanted} should")),
            Some(other) => self.error(format!("{other:?} stands where {wanted} should")),
            None => self.error(format!("the text ends where {wanted} should be")),
        }
    }

    fn word(&mut self, wanted: &str) -> Parsed<&'a str> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.unexpected(wanted)),
        }
    }

    fn accept_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Token::Word(word));
        self.at += usize::from(found);
        found
    }

    fn integer(&mut self, wanted: &str) -> Parsed<u64> {
        match self.peek() {
            Some(Token::Integer(n)) => {
                self.at += 1;
                Ok(n)
            }
            _ => Err(self.unexpected(wanted)),
        }
    }

    fn skip_line(&mut self, line: u32) {
        while self.tokens.get(self.at).is_some_and(|t| t.1 == line) {
            self.at += 1;
        }
    }
}
