//! Functions, which are read anew wherever they are called: the machine has no calls.

use super::super::instr::{self, Opcode};
use super::super::lex::Token;
use super::super::module::*;
use super::{Function, MAX_DEPTH, Parsed, Parser, Scope};

/// Most instructions of a kernel for each token of the text, with functions in place of their calls.
const MAX_EXPANSION: usize = 8;

impl<'a> Parser<'a> {
    /// Finds all functions, for a call may stand before what it calls.
    pub(super) fn find_functions(&mut self) -> Parsed<()> {
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
    pub(super) fn function(&mut self) -> Parsed<()> {
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
    pub(super) fn call(&mut self, line: u32, guard: Option<(u32, bool)>) -> Parsed<()> {
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
    pub(super) fn branch(&mut self, line: u32, opcode: &str, guard: Option<(u32, bool)>, label: usize) -> Parsed<()> {
        let decoded = instr::decode(&Opcode::new("bra"), vec![Operand::Label(label)]);
        let instr::Decoded { class, action } = decoded.map_err(|reason| ParseError { line, reason })?;
        self.body.code.push(Instruction { line, guard, opcode: opcode.to_owned(), class, action });
        Ok(())
    }
}
