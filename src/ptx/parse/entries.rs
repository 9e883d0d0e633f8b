//! Entries: their parameters and limits, and where their variables lie.

use super::super::flow::post_dominators;
use super::super::lex::Token;
use super::super::memory::{CALL_PARAMETERS, SHARED_START};
use super::super::module::*;
use super::{Body, MAX_SHARED, Parsed, Parser, Scope};

/// Most bytes of local memory of a thread.
const MAX_LOCAL: u64 = 512 << 10;
const MAX_PARAMETERS: u64 = 32_764;

impl<'a> Parser<'a> {
    pub(super) fn entry(&mut self) -> Parsed<Entry> {
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
    pub(super) fn parameter_list(&mut self) -> Parsed<Vec<(Variable, Type)>> {
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
}
