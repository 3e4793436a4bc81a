//! A serde deserializer over a [`Tree`] that finds every mistake of an object in one pass.

use std::collections::HashSet;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::fault::{Fault, Mistake};
use super::yaml::{Content, Id, Tree, integer, is_null};

/// Maximum mistakes of one object that are reported in one pass.
pub(super) const MAX_FAULTS: usize = 20;

/// Deserializes `root` as a `T`, or returns its mistakes in the order of the text, [`MAX_FAULTS`] at most.
///
/// The node of a mistake is cut out, and the rest is read again. A mistake that only follows from such a cut isn't
/// reported.
pub(super) fn read<T: DeserializeOwned>(
    tree: &mut Tree<'_>,
    root: Id,
) -> Result<T, Vec<(Id, Mistake)>> {
    let mut found: Vec<(Id, Mistake)> = Vec::new();
    let mut altered: HashSet<Id> = HashSet::new();
    // Mappings from which an unknown field was cut, and the known fields that it may be a misspelling of.
    let (mut thinner, mut meant): (HashSet<Id>, HashSet<(Id, &str)>) = Default::default();
    for _ in 0..10 * MAX_FAULTS {
        let fault = match T::deserialize(At { tree, id: root }) {
            Ok(read) if found.is_empty() => return Ok(read),
            Ok(_) => break,
            Err(fault) => fault,
        };
        let node = fault.node.unwrap_or(root);
        let is_follow_up = altered.contains(&node)
            || match &fault.mistake {
                Mistake::Missing(field) => meant.contains(&(node, *field)),
                Mistake::Other(_) => thinner.contains(&node),
                _ => false,
            };
        let held = match node == root {
            true => Vec::new(),
            false => tree.cut(node),
        };
        match &fault.mistake {
            // Cutting an unknown field leaves no required field missing, unless it is a misspelling of one.
            Mistake::UnknownField {
                field, expected, ..
            } => {
                let near = super::nearest::nearest(field, expected.iter().copied());
                meant.extend(
                    near.iter()
                        .flat_map(|near| held.iter().map(|at| (*at, *near))),
                );
                thinner.extend(held);
            }
            _ => altered.extend(held),
        }
        if !is_follow_up {
            found.push((node, fault.mistake));
        }
        if node == root || found.len() == MAX_FAULTS {
            break;
        }
    }
    found.sort_by_key(|(node, _)| tree.mark(*node));
    Err(found)
}

/// Deserializes `root` as a `T`; `None` on any mistake.
pub(super) fn try_read<T: DeserializeOwned>(tree: &Tree<'_>, root: Id) -> Option<T> {
    T::deserialize(At { tree, id: root }).ok()
}

/// A node to be deserialized.
#[derive(Clone, Copy)]
struct At<'a, 't> {
    tree: &'a Tree<'t>,
    id: Id,
}

impl<'a, 't> At<'a, 't> {
    fn scalar(&self) -> Option<(&'a str, bool)> {
        match self.tree.content(self.id) {
            Content::Scalar { text, plain } => Some((text, *plain)),
            _ => None,
        }
    }

    fn is_null(&self) -> bool {
        self.scalar()
            .is_some_and(|(text, plain)| plain && is_null(text))
    }

    /// The mistake of a value that isn't `expected`.
    fn not(&self, expected: &str) -> Fault {
        let found = match self.tree.content(self.id) {
            Content::Scalar { .. } if self.is_null() => "nothing stands here".to_owned(),
            Content::Scalar { text, .. } => format!("{text:?} stands here"),
            Content::Sequence(_) => "a list stands here".to_owned(),
            Content::Mapping(_) => "a mapping stands here".to_owned(),
        };
        de::Error::custom(format_args!("{found}, where {expected} is expected"))
    }

    fn number<N: TryFrom<i128>>(&self) -> Result<N, Fault> {
        let plain = self.scalar().filter(|(_, plain)| *plain);
        let number = plain.and_then(|(text, _)| integer(text));
        let fits = number.and_then(|number| N::try_from(number).ok());
        fits.ok_or_else(|| match number {
            Some(number) => de::Error::custom(format_args!("{number} is out of range")),
            None => self.not("a number"),
        })
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $number:ty),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.number::<$number>()
                .and_then(|number| visitor.$visit(number))
                .map_err(|fault| fault.at(self.id))
        })*
    };
}

impl<'de> Deserializer<'de> for At<'_, '_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let read = match self.tree.content(self.id) {
            Content::Sequence(_) => return self.deserialize_seq(visitor),
            Content::Mapping(_) => return self.deserialize_map(visitor),
            Content::Scalar { plain: false, text } => visitor.visit_str(text),
            Content::Scalar { text, .. } if is_null(text) => visitor.visit_unit(),
            Content::Scalar { text, .. } => match (boolean(text), integer(text)) {
                (Some(value), _) => visitor.visit_bool(value),
                (_, Some(number)) if u64::try_from(number).is_ok() => {
                    visitor.visit_u64(u64::try_from(number).unwrap_or_default())
                }
                (_, Some(number)) if i64::try_from(number).is_ok() => {
                    visitor.visit_i64(i64::try_from(number).unwrap_or_default())
                }
                _ => match text.parse::<f64>() {
                    Ok(number) if number.is_finite() => visitor.visit_f64(number),
                    _ => visitor.visit_str(text),
                },
            },
        };
        read.map_err(|fault: Fault| fault.at(self.id))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let plain = self.scalar().filter(|(_, plain)| *plain);
        let value = plain.and_then(|(text, _)| boolean(text));
        let read = match value {
            Some(value) => visitor.visit_bool(value),
            None => Err(self.not("true or false")),
        };
        read.map_err(|fault| fault.at(self.id))
    }

    numbers!(
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    );

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let read = match self.scalar() {
            Some((text, _)) if !self.is_null() => visitor.visit_str(text),
            _ => Err(self.not("a text")),
        };
        read.map_err(|fault: Fault| fault.at(self.id))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.is_null() {
            true => visitor.visit_none(),
            false => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let read = visitor.visit_newtype_struct(self);
        read.map_err(|fault| fault.at(self.id))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let read = match self.tree.elements(self.id) {
            Some(elements) => visitor.visit_seq(Elements {
                tree: self.tree,
                rest: elements,
            }),
            None => Err(self.not("a list")),
        };
        read.map_err(|fault| fault.at(self.id))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_struct("", &[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        owner: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let read = match self.tree.entries(self.id) {
            Some(entries) => visitor.visit_map(Entries {
                tree: self.tree,
                owner,
                rest: entries,
                value: None,
            }),
            None => Err(self.not("a mapping")),
        };
        read.map_err(|fault| fault.at(self.id))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let read = match self.scalar() {
            Some((text, _)) if !self.is_null() => visitor.visit_enum(Variant(text)),
            _ => Err(self.not("a word")),
        };
        read.map_err(|mut fault| {
            if let Mistake::UnknownVariant { owner, .. } = &mut fault.mistake {
                *owner = name;
            }
            fault.at(self.id)
        })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
    }
}

/// The elements of a sequence that are still to be read.
struct Elements<'a, 't> {
    tree: &'a Tree<'t>,
    rest: &'a [Id],
}

impl<'de> SeqAccess<'de> for Elements<'_, '_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some((id, rest)) = self.rest.split_first() else {
            return Ok(None);
        };
        self.rest = rest;
        let at = At {
            tree: self.tree,
            id: *id,
        };
        seed.deserialize(at).map(Some).map_err(|f| f.at(*id))
    }
}

/// The entries of a mapping that are still to be read.
struct Entries<'a, 't> {
    tree: &'a Tree<'t>,
    owner: &'static str,
    rest: &'a [(Id, Id)],
    value: Option<Id>,
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let Some(((key, value), rest)) = self.rest.split_first() else {
            return Ok(None);
        };
        (self.rest, self.value) = (rest, Some(*value));
        let at = At {
            tree: self.tree,
            id: *key,
        };
        let read = seed.deserialize(at).map(Some);
        read.map_err(|mut fault| {
            if let Mistake::UnknownField { owner, .. } = &mut fault.mistake {
                *owner = self.owner;
            }
            fault.at(*key)
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let value = self.value.take();
        let id = value.ok_or_else(|| de::Error::custom("a value without a key"))?;
        let at = At {
            tree: self.tree,
            id,
        };
        seed.deserialize(at).map_err(|fault| fault.at(id))
    }
}

/// The name of an enum variant.
struct Variant<'a>(&'a str);

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let read = seed.deserialize(IntoDeserializer::<Fault>::into_deserializer(self.0));
        read.map(|variant| (variant, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Fault> {
        Err(de::Error::custom("a word stands for no value"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        Err(de::Error::custom("a word stands for no value"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fault> {
        Err(de::Error::custom("a word stands for no value"))
    }
}

/// The value of a plain scalar that is a boolean, in YAML 1.1's words as well: Kubernetes reads those.
fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" => Some(true),
        "false" | "no" | "off" | "n" => Some(false),
        _ => None,
    }
}
