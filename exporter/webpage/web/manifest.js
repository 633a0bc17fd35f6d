// manifest.json, checked before anything in it is used; the specification is docs/bundle-format.md.
import { RunError } from "./errors.js";
import { SCHEMA } from "./manifest_schema.js";

const MAJOR = 1;
const MINOR = 1;
const MAX_BYTES = 1 << 20;
const VERSION = /^1\.([1-9][0-9]{0,3})$/;
const RUNTIMES = SCHEMA.properties.runtimes.propertyNames.enum;
const TOKENS = /"(?:[^"\\]|\\.)*"(\s*:)?|[{}]/g; // of valid JSON: keys, strings, objects

/**
 * Read and check a manifest.
 *
 * @param {Uint8Array} bytes of the file.
 * @throws {RunError} one line: what is wrong and what to do.
 */
export function readManifest(bytes) {
  if (bytes.length > MAX_BYTES) {
    throw new RunError(`manifest.json: ${bytes.length} bytes; a manifest has at most 1 MiB`);
  }
  let values;
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    values = JSON.parse(text);
    refuseDuplicates(text);
  } catch (error) {
    throw new RunError(`manifest.json: not valid JSON (${error.message}); copy it again`);
  }
  return checkManifest(values);
}

/** Check a manifest's values; unknown keys are allowed in a newer minor version only. */
export function checkManifest(values) {
  const minor = minorVersion(values?.format_version);
  if (minor === undefined) {
    const found = JSON.stringify(values?.format_version);
    throw new RunError(`manifest format ${found}, this page reads ${MAJOR}.x; export again`);
  }
  check(SCHEMA, values, "manifest", minor > MINOR);
  checkRules(values);
  return values;
}

/** The integer 1 stands for 1.0. */
function minorVersion(found) {
  if (found === MAJOR) return 0;
  const match = typeof found === "string" ? VERSION.exec(found) : null;
  return match ? Number(match[1]) : undefined;
}

/** The rules between fields, which the schema cannot express. */
function checkRules({ files, model, reference, runtimes, tokens }) {
  const known = Object.keys(runtimes).filter((name) => RUNTIMES.includes(name));
  if (known.length === 0) fail("runtimes", "none that this page knows");
  const used = [...known.map((name) => runtimes[name].model), reference, tokens.tokenizer];
  for (const path of [...used, tokens.chat_template ?? reference]) {
    if (!Object.hasOwn(files, path)) fail("files", `${JSON.stringify(path)} is not listed`);
  }
  for (const id of [tokens.bos_token_id ?? 0, ...tokens.stop_token_ids]) {
    if (id >= model.vocab_size) fail("tokens", `token ${id} of a vocabulary of ${model.vocab_size}`);
  }
}

/** JSON.parse keeps the last of duplicate keys; other readers may keep the first. */
function refuseDuplicates(text) {
  const open = [];
  for (const [token, colon] of text.matchAll(TOKENS)) {
    if (token === "{") open.push(new Set());
    else if (token === "}") open.pop();
    else if (colon) {
      const key = JSON.parse(token.slice(0, -colon.length));
      if (open.at(-1).has(key)) throw new Error(`duplicate key ${JSON.stringify(key)}`);
      open.at(-1).add(key);
    }
  }
}

/** Check a value against the part of JSON Schema that the manifest's schema uses. */
function check(schema, value, where, ignoresUnknown) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    check(SCHEMA.$defs[name], value, where, ignoresUnknown);
  } else if (schema.anyOf) {
    if (value !== null || schema.anyOf[1].type !== "null") {
      const [first, second] = schema.anyOf;
      check(typeof value === second.type ? second : first, value, where, ignoresUnknown);
    }
  } else {
    if (!TYPES[schema.type](value)) fail(where, `${schema.type} is needed`);
    checkBounds(schema, value, where);
    if (schema.type === "object") checkMembers(schema, value, where, ignoresUnknown);
    if (schema.type === "array") {
      value.forEach((item, index) => check(schema.items, item, `${where}.${index}`, ignoresUnknown));
    }
  }
}

const TYPES = {
  array: Array.isArray,
  boolean: (value) => typeof value === "boolean",
  integer: Number.isSafeInteger,
  number: Number.isFinite,
  object: (value) => typeof value === "object" && value !== null && !Array.isArray(value),
  string: (value) => typeof value === "string" && !/\p{Surrogate}/u.test(value),
};

function checkBounds(schema, value, where) {
  const { const: only, pattern, minimum, maximum, exclusiveMinimum } = schema;
  if (only !== undefined && value !== only) fail(where, `${only} is needed`);
  if (value < minimum || value > maximum || value <= exclusiveMinimum) {
    fail(where, `${value} is out of range`);
  }
  if (pattern && !new RegExp(pattern, "u").test(value)) fail(where, `${pattern} is needed`);
  const [kind, length] = size(schema.type, value);
  if (length < schema[`min${kind}`] || length > schema[`max${kind}`]) {
    fail(where, `${length} long, which is out of range`);
  }
}

/** What the limit's name ends in, and the length that it limits; strings count code points. */
function size(type, value) {
  if (type === "string") return ["Length", [...value].length];
  if (type === "array") return ["Items", value.length];
  return ["Properties", type === "object" ? Object.keys(value).length : 0];
}

function checkMembers(schema, value, where, ignoresUnknown) {
  const { properties, propertyNames, patternProperties, required, additionalProperties } = schema;
  for (const key of required ?? []) {
    if (!Object.hasOwn(value, key)) fail(`${where}.${key}`, "missing");
  }
  for (const [key, member] of Object.entries(value)) {
    const at = `${where}.${key}`;
    if (propertyNames?.maxLength < [...key].length) fail(where, "a key is too long");
    const named = properties && (Object.hasOwn(properties, key) ? properties[key] : undefined);
    const pattern = Object.keys(patternProperties ?? {}).find((each) => new RegExp(each, "u").test(key));
    const inner = named ?? patternProperties?.[pattern] ?? additionalProperties;
    const isUnknown = !inner || (propertyNames?.enum && !propertyNames.enum.includes(key));
    if (!isUnknown) check(inner, member, at, ignoresUnknown);
    else if (!ignoresUnknown || patternProperties) fail(at, "unknown key");
  }
}

function fail(where, message) {
  const place = where.replace(/[\u0000-\u001f\u007f]/g, "\ufffd").slice(0, 120);
  throw new RunError(`manifest.json: ${place}: ${message}; export again`);
}
