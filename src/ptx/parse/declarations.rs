//! What a module declares: its version and target, variables and what they hold at first.

use super::super::lex::Token;
use super::super::module::*;
use super::{MAX_DEPTH, Parsed, Parser};

/// The newest version of the instruction set that is read.
const NEWEST: (u32, u32) = (8, 8);
const TARGETS: &[u32] = &[50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121];
/// Most bytes of a module's global and constant variables.
const MAX_VARIABLES: u64 = 256 << 20;

impl<'a> Parser<'a> {
    pub(super) fn header(&mut self) -> Parsed<((u32, u32), String)> {
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

    pub(super) fn declaration(&mut self) -> Parsed<Option<Entry>> {
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
    pub(super) fn variables(&mut self, space: Space, external: bool) -> Parsed<Vec<Variable>> {
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

    pub(super) fn alignment(&mut self) -> Parsed<u64> {
        let align = self.integer("an alignment")?;
        if align.is_power_of_two() && align <= 4096 {
            Ok(align)
        } else {
            Err(self.error(format!("an alignment of {align} is not possible")))
        }
    }

    pub(super) fn ty(&self, word: &str) -> Parsed<Type> {
        let found = word.strip_prefix('.').and_then(Type::parse);
        found.ok_or_else(|| self.error(format!("the type `{word}` is not known here")))
    }

    /// `[4][2]`: how many elements, and whether the first size is left open.
    pub(super) fn dimensions(&mut self) -> Parsed<(u64, bool)> {
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
}

pub(super) fn variable_space(word: &str) -> Option<Space> {
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
