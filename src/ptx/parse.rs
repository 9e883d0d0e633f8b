//! PTX text to a [`Module`].
//!
//! The text may come from anywhere: nothing recurses without bound, and nothing is allocated that is larger than a
//! constant times the text.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicU64};

use super::flow::post_dominators;
use super::instr::{self, Opcode};
use super::lex::{Located, Token, tokens};
use super::memory::{CALL_PARAMETERS, SHARED_START};
use super::module::*;

/// The newest version of the instruction set that is read.
const NEWEST: (u32, u32) = (8, 8);
const TARGETS: &[u32] = &[50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121];
/// Most bytes of shared memory that a block can have, on any target.
pub(super) const MAX_SHARED: u64 = 232_448;
/// Most bytes of local memory of a thread.
const MAX_LOCAL: u64 = 512 << 10;
/// Most bytes of a module's global and constant variables.
const MAX_VARIABLES: u64 = 256 << 20;
const MAX_PARAMETERS: u64 = 32_764;
/// Most instructions of a kernel for each token of the text, with functions in place of their calls.
const MAX_EXPANSION: usize = 8;
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

    // --- tokens ------------------------------------------------------------------------------------------------

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

    // --- the module --------------------------------------------------------------------------------------------

    fn header(&mut self) -> Parsed<((u32, u32), String)> {
        if !self.accept_word(".version") {
            return Err(self.unexpected("`.version`, with which PTX begins,"));
        }
        let Token::F64(version) = self.next()? else { return Err(self.error("`.version` needs a number such as 8.0")) };
        // One digit behind the point, by the language.
        let tenths = (version * 10.0).round() as u32;
        let version = (tenths / 10, tenths % 10);
        if version > NEWEST {
            let (major, minor) = NEWEST;
            let reason = format!("PTX {}.{} is newer than {major}.{minor}", version.0, version.1);
            return Err(ParseError { line: self.tokens[self.at - 1].1, reason });
        }
        if !self.accept_word(".target") {
            return Err(self.unexpected("`.target`"));
        }
        let target = self.word("a target such as sm_80")?;
        let number = target.strip_prefix("sm_").map(|t| t.trim_end_matches(['a', 'f']));
        if !number.and_then(|n| n.parse().ok()).is_some_and(|n| TARGETS.contains(&n)) {
            self.at -= 1;
            return Err(self.error(format!("the target `{target}` is not known")));
        }
        while self.accept(',') {
            self.word("an option of the target")?;
        }
        if self.accept_word(".address_size") && self.integer("64")? != 64 {
            return Err(self.error("addresses of 32 bits are not known"));
        }
        Ok((version, target.to_owned()))
    }

    fn declaration(&mut self) -> Parsed<Option<Entry>> {
        let line = self.line();
        let mut external = false;
        loop {
            match self.word("a directive")? {
                ".visible" | ".weak" | ".common" => {}
                ".extern" => external = true,
                ".entry" => return self.entry().map(Some),
                ".file" | ".loc" => {
                    self.skip_line(line);
                    return Ok(None);
                }
                ".pragma" => {
                    self.next()?;
                    self.expect(';')?;
                    return Ok(None);
                }
                ".section" => {
                    while !self.accept('}') {
                        self.next()?;
                    }
                    return Ok(None);
                }
                ".func" => {
                    self.function()?;
                    return Ok(None);
                }
                ".alias" => return Err(self.error("aliases are not known")),
                word => {
                    let Some(space) = variable_space(word).filter(|s| *s != Space::Param) else {
                        self.at -= 1;
                        return Err(self.error(format!("the directive `{word}` is not known")));
                    };
                    for variable in self.variables(space, external)? {
                        let index = self.globals.len();
                        if self.names.insert(variable.name.clone(), index).is_some() {
                            return Err(self.error(format!("there are two variables `{}`", variable.name)));
                        }
                        self.globals.push(variable);
                    }
                    if self.globals.iter().map(|v| v.bytes).sum::<u64>() > MAX_VARIABLES {
                        return Err(self.error("the module's variables are too large"));
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// Everything behind `.shared` and the like: `.align 16 .b8 name[1024], other[4] = {1, 2};`
    fn variables(&mut self, space: Space, external: bool) -> Parsed<Vec<Variable>> {
        let (mut align, mut ty, mut vector) = (None, None, 1);
        while let Some(Token::Word(word)) = self.peek()
            && word.starts_with('.')
        {
            self.at += 1;
            match word {
                ".align" => align = Some(self.alignment()?),
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                _ => ty = Some(self.ty(word)?),
            }
        }
        let ty = ty.ok_or_else(|| self.unexpected("a type"))?;
        let mut out = Vec::new();
        loop {
            let name = self.word("a name")?.to_owned();
            let (elements, open) = self.dimensions()?;
            let bytes = elements.checked_mul(vector * ty.bytes() as u64).filter(|b| *b <= MAX_VARIABLES);
            let bytes = bytes.ok_or_else(|| self.error(format!("`{name}` is too large")))?;
            let dynamic = open && external && space == Space::Shared;
            if open && !dynamic {
                return Err(self.error(format!("`{name}` has no size; only `.extern .shared` may have none")));
            }
            let initial = if self.accept('=') { self.initial(ty, bytes)? } else { Vec::new() };
            let align = align.unwrap_or(vector * ty.bytes() as u64);
            out.push(Variable { name, space, align, bytes, initial, dynamic, offset: 0 });
            if !self.accept(',') {
                self.expect(';')?;
                return Ok(out);
            }
        }
    }

    fn alignment(&mut self) -> Parsed<u64> {
        let align = self.integer("an alignment")?;
        if align.is_power_of_two() && align <= 4096 {
            Ok(align)
        } else {
            Err(self.error(format!("an alignment of {align} is not possible")))
        }
    }

    fn ty(&self, word: &str) -> Parsed<Type> {
        let found = word.strip_prefix('.').and_then(Type::parse);
        found.ok_or_else(|| self.error(format!("the type `{word}` is not known here")))
    }

    /// `[4][2]`: how many elements, and whether the first size is left open.
    fn dimensions(&mut self) -> Parsed<(u64, bool)> {
        let (mut elements, mut open) = (1u64, false);
        while self.accept('[') {
            if self.accept(']') {
                open = true;
                continue;
            }
            let n = self.integer("a size")?;
            elements = elements.checked_mul(n).ok_or_else(|| self.error("the array is too large"))?;
            self.expect(']')?;
        }
        Ok((if open { 0 } else { elements }, open))
    }

    /// Numbers in braces, any nesting of them; values that are left out are zero.
    fn initial(&mut self, ty: Type, bytes: u64) -> Parsed<Vec<u8>> {
        let (mut out, mut depth) = (Vec::new(), 0usize);
        loop {
            if self.accept('{') {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(self.error("too many braces"));
                }
                continue;
            }
            if !self.accept('}') {
                let negative = self.accept('-');
                let value = match self.next()? {
                    Token::Integer(n) if negative => n.wrapping_neg(),
                    Token::Integer(n) => n,
                    Token::F32(bits) if ty == Type::F(32) => bits.into(),
                    Token::F64(x) if ty == Type::F(64) => x.to_bits(),
                    _ => {
                        self.at -= 1;
                        return Err(self.unexpected("a number"));
                    }
                };
                out.extend(&value.to_le_bytes()[..ty.bytes()]);
                if out.len() as u64 > bytes {
                    return Err(self.error("there are more values than the variable holds"));
                }
            } else {
                depth = depth.checked_sub(1).ok_or_else(|| self.error("`}` closes nothing"))?;
            }
            if depth == 0 {
                return Ok(out);
            }
            self.accept(',');
        }
    }

    // --- functions ---------------------------------------------------------------------------------------------

    /// Finds all functions, for a call may stand before what it calls.
    fn find_functions(&mut self) -> Parsed<()> {
        let start = self.at;
        let mut depth = 0usize;
        while let Some(token) = self.peek() {
            self.at += 1;
            match token {
                Token::Punctuation('{') => depth += 1,
                Token::Punctuation('}') => depth = depth.saturating_sub(1),
                Token::Word(".func") if depth == 0 => self.signature()?,
                _ => {}
            }
        }
        self.at = start;
        Ok(())
    }

    /// `(.param .b32 result) name(.param .b64 x)`, up to the brace or semicolon.
    fn signature(&mut self) -> Parsed<()> {
        let variables = |list: Vec<(Variable, Type)>| list.into_iter().map(|p| p.0).collect();
        let results = variables(self.parameter_list()?);
        let name = self.word("the function's name")?.to_owned();
        let parameters = variables(self.parameter_list()?);
        while self.accept_word(".noreturn") {}
        let body = match self.peek() {
            Some(Token::Punctuation('{')) => Some(self.at + 1),
            Some(Token::Punctuation(';')) => None,
            _ => return Err(self.unexpected("`{` or `;`")),
        };
        let known = self.functions.iter_mut().find(|f| f.name == name);
        match known {
            Some(known) if known.body.is_some() && body.is_some() => {
                Err(self.error(format!("there are two functions `{name}`")))
            }
            Some(known) => {
                known.body = known.body.or(body);
                Ok(())
            }
            None => {
                self.functions.push(Function { name, results, parameters, body });
                Ok(())
            }
        }
    }

    /// Passes over a function: it is read where it is called.
    fn function(&mut self) -> Parsed<()> {
        let mut depth = 0usize;
        loop {
            match self.next()? {
                Token::Punctuation('{') => depth += 1,
                Token::Punctuation('}') if depth <= 1 => return Ok(()),
                Token::Punctuation('}') => depth -= 1,
                Token::Punctuation(';') if depth == 0 => return Ok(()),
                _ => {}
            }
        }
    }

    /// `(result), name, (x, y);`: the function's body is put here, its parameters being the caller's variables.
    fn call(&mut self, line: u32, guard: Option<(u32, bool)>) -> Parsed<()> {
        let at_line = |reason| ParseError { line, reason };
        let results = self.arguments()?;
        if !results.is_empty() {
            self.expect(',')?;
        }
        let name = self.word("a function's name")?;
        let arguments = if self.accept(',') { self.arguments()? } else { Vec::new() };
        self.expect(';')?;
        let index = self.functions.iter().position(|f| f.name == name);
        let found = index.and_then(|i| self.functions[i].body.map(|body| (i, body)));
        let Some((index, body)) = found else {
            return Err(at_line(format!("there is no function `{name}` with a body; calls are known by name alone")));
        };
        let function = &self.functions[index];
        if self.body.calls.contains(&index) || self.body.calls.len() >= MAX_DEPTH {
            return Err(at_line(format!("`{name}` calls itself, or calls are too deep")));
        }
        if self.body.code.len() > MAX_EXPANSION * self.tokens.len() {
            return Err(at_line(format!("with `{name}` in place of its calls the kernel is too long")));
        }
        let mut scope = Scope::default();
        for (formal, actual) in [(&function.results, &results), (&function.parameters, &arguments)] {
            let same = |(f, a): (&Variable, &usize)| f.bytes == self.body.variables[*a].bytes;
            if formal.len() != actual.len() || !formal.iter().zip(actual).all(same) {
                return Err(at_line(format!("the arguments of the call of `{name}` do not fit it")));
            }
            scope.variables.extend(formal.iter().map(|f| f.name.clone()).zip(actual.iter().copied()));
        }
        let end = self.body.labels.len();
        self.body.labels.push(0);
        if let Some((slot, negated)) = guard {
            self.branch(line, "call", Some((slot, !negated)), end)?;
        }
        // The function sees no names of its caller's.
        let scopes = std::mem::replace(&mut self.body.scopes, vec![scope]);
        let exit = self.body.exit.replace(end);
        let at = std::mem::replace(&mut self.at, body);
        self.body.calls.push(index);
        self.statements()?;
        self.body.calls.pop();
        self.at = at;
        self.body.exit = exit;
        self.body.scopes = scopes;
        self.body.labels[end] = self.body.code.len();
        Ok(())
    }

    /// Variables of the parameter space in parentheses; none if there are no parentheses.
    fn arguments(&mut self) -> Parsed<Vec<usize>> {
        let mut out = Vec::new();
        if !self.accept('(') {
            return Ok(out);
        }
        while !self.accept(')') {
            let name = self.word("an argument")?;
            let variable = self.variable(name).filter(|v| self.body.variables[*v].space == Space::Param);
            out.push(variable.ok_or_else(|| self.error(format!("the argument `{name}` is not a `.param` variable")))?);
            self.accept(',');
        }
        Ok(out)
    }

    /// A branch to a label that the text does not name.
    fn branch(&mut self, line: u32, opcode: &str, guard: Option<(u32, bool)>, label: usize) -> Parsed<()> {
        let decoded = instr::decode(&Opcode::new("bra"), vec![Operand::Label(label)]);
        let instr::Decoded { class, action } = decoded.map_err(|reason| ParseError { line, reason })?;
        self.body.code.push(Instruction { line, guard, opcode: opcode.to_owned(), class, action });
        Ok(())
    }

    // --- entries -----------------------------------------------------------------------------------------------

    fn entry(&mut self) -> Parsed<Entry> {
        let name = self.word("the entry's name")?.to_owned();
        self.body = Body { scopes: vec![Scope::default()], ..Body::default() };
        let parameters = self.parameters()?;
        let limits = self.limits()?;
        self.expect('{')?;
        self.statements()?;
        let mut body = std::mem::take(&mut self.body);
        let mut place = |space, start| {
            let mut end: u64 = start;
            // The launch's parameters have their places.
            let own = body.variables.iter_mut().skip(parameters.len());
            for v in own.filter(|v| v.space == space && !v.dynamic) {
                v.offset = end.next_multiple_of(v.align);
                end = v.offset.saturating_add(v.bytes);
            }
            end - start
        };
        let static_shared = place(Space::Shared, SHARED_START);
        let local_bytes = place(Space::Local, 0);
        // Behind it what calls hand over.
        let local_bytes = local_bytes + place(Space::Param, CALL_PARAMETERS + local_bytes);
        if static_shared > MAX_SHARED || local_bytes > MAX_LOCAL {
            let reason = format!("`{name}` has more shared or local memory than there can be");
            return Err(self.error(reason));
        }
        for v in body.variables.iter_mut().filter(|v| v.dynamic) {
            v.offset = (SHARED_START + static_shared).next_multiple_of(v.align.max(16));
        }
        let reconverge = post_dominators(&body.code, &body.labels);
        let Body { variables, code, labels, registers, predicates, .. } = body;
        let (registers, predicates) = (registers as usize, predicates as usize);
        Ok(Entry {
            name,
            parameters,
            module: self.module,
            limits,
            variables,
            registers,
            predicates,
            code,
            labels,
            reconverge,
            static_shared,
            local_bytes,
        })
    }

    /// An entry's parameters, of which the body knows.
    fn parameters(&mut self) -> Parsed<Vec<Parameter>> {
        let (mut out, mut end) = (Vec::new(), 0u64);
        for (mut variable, ty) in self.parameter_list()? {
            let (name, bytes) = (variable.name.clone(), variable.bytes);
            let offset = end.next_multiple_of(variable.align);
            end = offset.saturating_add(bytes);
            if end > MAX_PARAMETERS {
                return Err(self.error("the parameters are too large"));
            }
            variable.offset = offset;
            self.declare(variable)?;
            out.push(Parameter { name, ty, bytes, offset });
        }
        Ok(out)
    }

    /// `(.param .u64 x, .param .align 8 .b8 y[24])`, or nothing.
    fn parameter_list(&mut self) -> Parsed<Vec<(Variable, Type)>> {
        let mut out = Vec::new();
        if !self.accept('(') || self.accept(')') {
            return Ok(out);
        }
        loop {
            if !self.accept_word(".param") {
                return Err(self.unexpected("`.param`"));
            }
            let (mut align, mut ty) = (None, None);
            while let Some(Token::Word(word)) = self.peek()
                && word.starts_with('.')
            {
                self.at += 1;
                match word {
                    ".align" if ty.is_none() => align = Some(self.alignment()?),
                    // What a pointer points at is a promise to the compiler.
                    ".align" => drop(self.alignment()?),
                    ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                    _ => ty = Some(self.ty(word)?),
                }
            }
            let ty = ty.ok_or_else(|| self.unexpected("a type"))?;
            let name = self.word("a parameter's name")?.to_owned();
            let (elements, _) = self.dimensions()?;
            let bytes = elements.saturating_mul(ty.bytes() as u64);
            out.push((
                Variable {
                    name,
                    space: Space::Param,
                    align: align.unwrap_or(ty.bytes() as u64),
                    bytes,
                    initial: Vec::new(),
                    dynamic: false,
                    offset: 0,
                },
                ty,
            ));
            if !self.accept(',') {
                self.expect(')')?;
                return Ok(out);
            }
        }
    }

    /// Directives between the parameters and the body.
    fn limits(&mut self) -> Parsed<Limits> {
        let mut limits = Limits { threads: None, most_threads: None, cluster: [1; 3] };
        while let Some(Token::Word(word)) = self.peek() {
            self.at += 1;
            let mut numbers = Vec::new();
            while let Some(Token::Integer(_) | Token::Text(_)) = self.peek() {
                if let Token::Integer(n) = self.next()? {
                    numbers.push(u32::try_from(n).unwrap_or(u32::MAX));
                }
                self.accept(',');
            }
            let [x, y, z] = std::array::from_fn(|i| numbers.get(i).copied().unwrap_or(1));
            match word {
                ".reqntid" => limits.threads = Some([x, y, z]),
                ".maxntid" => limits.most_threads = Some(x.saturating_mul(y).saturating_mul(z)),
                ".reqnctapercluster" => limits.cluster = [x, y, z],
                ".minnctapersm" | ".maxnreg" | ".explicitcluster" => {}
                ".pragma" => drop(self.accept(';')),
                _ => {
                    self.at -= 1;
                    return Err(self.error(format!("the directive `{word}` is not known")));
                }
            }
        }
        Ok(limits)
    }

    fn declare(&mut self, variable: Variable) -> Parsed<()> {
        let index = self.body.variables.len();
        let Some(scope) = self.body.scopes.last_mut() else { return Ok(()) };
        if scope.variables.insert(variable.name.clone(), index).is_some() {
            return Err(self.error(format!("there are two variables `{}`", variable.name)));
        }
        self.body.variables.push(variable);
        Ok(())
    }

    /// The statements of a body, whose opening brace has been read.
    fn statements(&mut self) -> Parsed<()> {
        while !self.body.scopes.is_empty() {
            self.statement()?;
        }
        Ok(())
    }

    fn statement(&mut self) -> Parsed<()> {
        let line = self.line();
        if self.accept('{') {
            if self.body.scopes.len() >= MAX_DEPTH {
                return Err(self.error("too many braces"));
            }
            self.body.scopes.push(Scope::default());
            return Ok(());
        }
        if self.accept('}') {
            return self.close_scope();
        }
        if self.accept(';') {
            return Ok(());
        }
        if self.accept('@') {
            let negated = self.accept('!');
            let name = self.word("a predicate")?;
            return match self.register(name) {
                Some(Operand::Predicate(slot)) => self.instruction(line, Some((slot, negated))),
                Some(_) => Err(self.error(format!("`{name}` is not a predicate"))),
                None => Err(self.error(format!("`{name}` is not declared"))),
            };
        }
        let word = match self.peek() {
            Some(Token::Word(word)) => word,
            _ => return Err(self.unexpected("an instruction")),
        };
        match word {
            ".reg" => {
                self.at += 1;
                self.declare_registers(None)
            }
            _ if word.starts_with(".reg.") => {
                let ty = self.ty(&word[4..])?;
                self.at += 1;
                self.declare_registers(Some(ty))
            }
            ".loc" | ".file" => {
                self.skip_line(line);
                Ok(())
            }
            ".pragma" => {
                self.at += 1;
                self.next()?;
                self.expect(';')
            }
            _ if word.starts_with('.') => {
                self.at += 1;
                let space = variable_space(word)
                    .ok_or_else(|| ParseError { line, reason: format!("the directive `{word}` is not known here") })?;
                for variable in self.variables(space, false)? {
                    self.declare(variable)?;
                }
                Ok(())
            }
            _ if self.tokens.get(self.at + 1).map(|t| t.0) == Some(Token::Punctuation(':')) => {
                self.at += 2;
                let here = self.body.code.len();
                let Some(scope) = self.body.scopes.last_mut() else { return Ok(()) };
                match scope.labels.insert(word.to_owned(), here) {
                    Some(_) => Err(ParseError { line, reason: format!("there are two labels `{word}`") }),
                    None => Ok(()),
                }
            }
            _ => self.instruction(line, None),
        }
    }

    /// Labels that a scope names and does not have are its parent's.
    fn close_scope(&mut self) -> Parsed<()> {
        let Some(scope) = self.body.scopes.pop() else { return Ok(()) };
        for (name, index, line) in scope.wanted {
            match (scope.labels.get(&name), self.body.scopes.last_mut()) {
                (Some(here), _) => self.body.labels[index] = *here,
                (None, Some(parent)) => parent.wanted.push((name, index, line)),
                (None, None) => return Err(ParseError { line, reason: format!("there is no label `{name}`") }),
            }
        }
        Ok(())
    }

    /// Behind `.reg`; `ty` if it was one word with it.
    fn declare_registers(&mut self, ty: Option<Type>) -> Parsed<()> {
        let ty = match ty {
            Some(ty) => ty,
            None => {
                let word = self.word("a type")?;
                self.ty(word)?
            }
        };
        loop {
            let name = self.word("a register's name")?.to_owned();
            let count = if self.accept('<') {
                let count = self.integer("a count")?;
                self.expect('>')?;
                Some(count)
            } else {
                None
            };
            if let Some(scope) = self.body.scopes.last_mut() {
                scope.registers.insert(name, Declared { count, predicate: ty == Type::Pred });
            }
            if !self.accept(',') {
                return self.expect(';');
            }
        }
    }

    /// The slot of a declared register. Slots are given out as registers are used, so that a count costs nothing.
    fn register(&mut self, name: &str) -> Option<Operand> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: Option<u64> = name[prefix.len()..].parse().ok();
        let declared = |scope: &Scope| match (scope.registers.get(name), scope.registers.get(prefix), number) {
            (Some(d @ Declared { count: None, .. }), ..) => Some(*d),
            (_, Some(d), Some(n)) if d.count.is_some_and(|count| n < count) => Some(*d),
            _ => None,
        };
        let scopes = self.body.scopes.iter_mut().rev();
        let (scope, found) = scopes.into_iter().find_map(|s| declared(s).map(|d| (s, d)))?;
        if let Some(known) = scope.slots.get(name) {
            return Some(known.clone());
        }
        let operand = if found.predicate {
            self.body.predicates += 1;
            Operand::Predicate(self.body.predicates - 1)
        } else {
            self.body.registers += 1;
            Operand::Register(self.body.registers - 1)
        };
        scope.slots.insert(name.to_owned(), operand.clone());
        Some(operand)
    }

    /// The index of a variable among the entry's; one of the module's is copied there when it is first named.
    fn variable(&mut self, name: &str) -> Option<usize> {
        if let Some(index) = self.body.scopes.iter().rev().find_map(|s| s.variables.get(name)) {
            return Some(*index);
        }
        if let Some(index) = self.body.globals.get(name) {
            return Some(*index);
        }
        let copy = self.globals[*self.names.get(name)?].clone();
        let index = self.body.variables.len();
        self.body.variables.push(copy);
        self.body.globals.insert(name.to_owned(), index);
        Some(index)
    }

    // --- instructions ------------------------------------------------------------------------------------------

    fn instruction(&mut self, line: u32, guard: Option<(u32, bool)>) -> Parsed<()> {
        let opcode = self.word("an opcode")?;
        match (opcode, self.body.exit) {
            ("ret" | "ret.uni", Some(exit)) => {
                self.expect(';')?;
                return self.branch(line, opcode, guard, exit);
            }
            ("call" | "call.uni", _) => return self.call(line, guard),
            _ => {}
        }
        let branches = opcode == "bra" || opcode.starts_with("bra.");
        let mut operands = Vec::new();
        while !self.accept(';') {
            operands.push(if branches { self.label()? } else { self.operand()? });
            if !self.accept(',') {
                self.expect(';')?;
                break;
            }
        }
        let decoded = instr::decode(&Opcode::new(opcode), operands).map_err(|reason| ParseError { line, reason })?;
        let instr::Decoded { class, action } = decoded;
        self.body.code.push(Instruction { line, guard, opcode: opcode.to_owned(), class, action });
        Ok(())
    }

    fn label(&mut self) -> Parsed<Operand> {
        let line = self.line();
        let name = self.word("a label")?.to_owned();
        let index = self.body.labels.len();
        self.body.labels.push(0);
        if let Some(scope) = self.body.scopes.last_mut() {
            scope.wanted.push((name, index, line));
        }
        Ok(Operand::Label(index))
    }

    fn operand(&mut self) -> Parsed<Operand> {
        if self.accept('{') {
            return self.list().map(Operand::Vector);
        }
        if !self.accept('[') {
            let first = self.scalar()?;
            return Ok(if self.accept('|') { Operand::Pair(Box::new([first, self.scalar()?])) } else { first });
        }
        let mut base = self.scalar()?;
        let mut offset = 0;
        if let Operand::Variable(_, inside) = &mut base {
            offset = std::mem::take(inside);
        } else if self.accept('+') {
            offset = self.signed()?;
        } else if self.accept('-') {
            offset = self.signed()?.wrapping_neg();
        }
        let coordinates = if self.accept(',') {
            self.expect('{')?;
            self.list()?
        } else {
            Vec::new()
        };
        self.expect(']')?;
        Ok(Operand::Memory { base: Box::new(base), offset, coordinates })
    }

    /// The rest of `{a, b}`.
    fn list(&mut self) -> Parsed<Vec<Operand>> {
        let mut out = Vec::new();
        while !self.accept('}') {
            out.push(self.scalar()?);
            if !self.accept(',') {
                self.expect('}')?;
                break;
            }
        }
        Ok(out)
    }

    fn signed(&mut self) -> Parsed<i64> {
        let negative = self.accept('-');
        let value = self.integer("an offset")? as i64;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    fn scalar(&mut self) -> Parsed<Operand> {
        let negative = self.accept('-');
        let inverted = !negative && self.accept('!');
        let operand = match self.next()? {
            Token::Integer(n) => Operand::Integer(if negative { n.wrapping_neg() } else { n }),
            Token::F32(bits) => Operand::F32(if negative { bits ^ 1 << 31 } else { bits }),
            Token::F64(x) => Operand::F64(if negative { -x } else { x }),
            Token::Word(name) if !negative => self.named(name, inverted)?,
            _ => {
                self.at -= 1;
                return Err(self.unexpected("an operand"));
            }
        };
        if inverted && !matches!(operand, Operand::Not(_)) {
            return Err(self.error("`!` may only stand before a predicate"));
        }
        Ok(operand)
    }

    fn named(&mut self, name: &str, inverted: bool) -> Parsed<Operand> {
        if let Some(slot) = self.register(name) {
            return Ok(match slot {
                Operand::Predicate(slot) if inverted => Operand::Not(slot),
                slot => slot,
            });
        }
        if let Some(index) = self.variable(name) {
            let offset = if self.accept('+') {
                self.signed()?
            } else if self.accept('-') {
                self.signed()?.wrapping_neg()
            } else {
                0
            };
            return Ok(Operand::Variable(index, offset));
        }
        match name {
            "_" => Ok(Operand::Sink),
            "WARP_SZ" => Ok(Operand::Integer(32)),
            _ => special(name).map(Operand::Special).ok_or_else(|| {
                self.at -= 1;
                self.error(format!("`{name}` is not declared"))
            }),
        }
    }
}

fn variable_space(word: &str) -> Option<Space> {
    Some(match word {
        ".global" => Space::Global,
        ".const" => Space::Const,
        ".shared" => Space::Shared,
        ".local" => Space::Local,
        // Where a call's arguments and results lie; the launch's are in the list of the entry.
        ".param" => Space::Param,
        _ => return None,
    })
}

fn special(name: &str) -> Option<Special> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((base, axis)) => (base, ["x", "y", "z"].iter().position(|a| *a == axis)?),
        None => (name, usize::MAX),
    };
    if axis != usize::MAX {
        return Some(match base {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" => Special::Ctaid(axis),
            "%nctaid" => Special::Nctaid(axis),
            "%clusterid" => Special::Clusterid(axis),
            "%nclusterid" => Special::Nclusterid(axis),
            "%cluster_ctaid" => Special::ClusterCtaid(axis),
            "%cluster_nctaid" => Special::ClusterNctaid(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NwarpId,
        "%lanemask_eq" => Special::LaneMask(Ordering::Equal, false),
        "%lanemask_lt" => Special::LaneMask(Ordering::Less, false),
        "%lanemask_le" => Special::LaneMask(Ordering::Less, true),
        "%lanemask_gt" => Special::LaneMask(Ordering::Greater, false),
        "%lanemask_ge" => Special::LaneMask(Ordering::Greater, true),
        "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" => Special::Clock,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%cluster_ctarank" => Special::ClusterRank,
        "%cluster_nctarank" => Special::ClusterBlocks,
        "%smid" | "%gridid" => Special::Zero,
        "%nsmid" => Special::One,
        _ => return None,
    })
}
