//! The statements of a body: braces, labels, registers and variables.

use super::super::lex::Token;
use super::super::module::*;
use super::declarations::variable_space;
use super::{Declared, MAX_DEPTH, Parsed, Parser, Scope};

impl<'a> Parser<'a> {
    pub(super) fn declare(&mut self, variable: Variable) -> Parsed<()> {
        let index = self.body.variables.len();
        let Some(scope) = self.body.scopes.last_mut() else { return Ok(()) };
        if scope.variables.insert(variable.name.clone(), index).is_some() {
            return Err(self.error(format!("there are two variables `{}`", variable.name)));
        }
        self.body.variables.push(variable);
        Ok(())
    }

    /// The statements of a body, whose opening brace has been read.
    pub(super) fn statements(&mut self) -> Parsed<()> {
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
    pub(super) fn register(&mut self, name: &str) -> Option<Operand> {
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
    pub(super) fn variable(&mut self, name: &str) -> Option<usize> {
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
}
