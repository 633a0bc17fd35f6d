// Written by tests/manifest_schema.py from the Python runtime's model.
export const SCHEMA = {
  "$defs": {
    "FileEntry": {
      "additionalProperties": false,
      "description": "Size and checksum of one file; a truncated or altered one is refused.",
      "properties": {
        "size_bytes": {
          "maximum": 1099511627776,
          "minimum": 0,
          "type": "integer"
        },
        "sha256": {
          "pattern": "^[0-9a-f]{64}$",
          "type": "string"
        }
      },
      "required": [
        "size_bytes",
        "sha256"
      ],
      "type": "object"
    },
    "ModelEntry": {
      "additionalProperties": false,
      "description": "The model's sizes.",
      "properties": {
        "vocab_size": {
          "maximum": 2147483647,
          "minimum": 1,
          "type": "integer"
        },
        "hidden_size": {
          "maximum": 2147483647,
          "minimum": 1,
          "type": "integer"
        },
        "num_layers": {
          "maximum": 2147483647,
          "minimum": 1,
          "type": "integer"
        },
        "context_length": {
          "maximum": 2147483647,
          "minimum": 1,
          "type": "integer"
        },
        "has_drafter": {
          "type": "boolean"
        },
        "sliding": {
          "anyOf": [
            {
              "$ref": "#/$defs/SlidingEntry"
            },
            {
              "type": "null"
            }
          ],
          "default": null
        }
      },
      "required": [
        "vocab_size",
        "hidden_size",
        "num_layers",
        "context_length",
        "has_drafter"
      ],
      "type": "object"
    },
    "RuntimeEntry": {
      "additionalProperties": false,
      "description": "One runtime's graphs.",
      "properties": {
        "model": {
          "pattern": "^(?!(?:.*/)?\\.{0,2}(?:/|$))[^\\\\\\x00-\\x1f\\x7f]{1,1000}$",
          "type": "string"
        },
        "recipe": {
          "maxLength": 200,
          "minLength": 1,
          "type": "string"
        },
        "tolerances": {
          "$ref": "#/$defs/Tolerances"
        }
      },
      "required": [
        "model",
        "recipe",
        "tolerances"
      ],
      "type": "object"
    },
    "SlidingEntry": {
      "additionalProperties": false,
      "description": "Which of the layers that own KV rows use sliding-window attention.",
      "properties": {
        "window": {
          "maximum": 2147483647,
          "minimum": 1,
          "type": "integer"
        },
        "layers": {
          "items": {
            "maximum": 2147483647,
            "minimum": 0,
            "type": "integer"
          },
          "maxItems": 1000,
          "minItems": 1,
          "type": "array"
        }
      },
      "required": [
        "window",
        "layers"
      ],
      "type": "object"
    },
    "TokenEntry": {
      "additionalProperties": false,
      "description": "How text becomes tokens, and which tokens end an answer.",
      "properties": {
        "tokenizer": {
          "pattern": "^(?!(?:.*/)?\\.{0,2}(?:/|$))[^\\\\\\x00-\\x1f\\x7f]{1,1000}$",
          "type": "string"
        },
        "chat_template": {
          "anyOf": [
            {
              "pattern": "^(?!(?:.*/)?\\.{0,2}(?:/|$))[^\\\\\\x00-\\x1f\\x7f]{1,1000}$",
              "type": "string"
            },
            {
              "type": "null"
            }
          ]
        },
        "bos_token_id": {
          "anyOf": [
            {
              "maximum": 2147483647,
              "minimum": 0,
              "type": "integer"
            },
            {
              "type": "null"
            }
          ]
        },
        "stop_token_ids": {
          "items": {
            "maximum": 2147483647,
            "minimum": 0,
            "type": "integer"
          },
          "maxItems": 64,
          "type": "array"
        },
        "special_tokens": {
          "anyOf": [
            {
              "additionalProperties": {
                "maxLength": 1000,
                "type": "string"
              },
              "maxProperties": 200,
              "propertyNames": {
                "maxLength": 1000
              },
              "type": "object"
            },
            {
              "type": "null"
            }
          ],
          "default": null
        }
      },
      "required": [
        "tokenizer",
        "chat_template",
        "bos_token_id",
        "stop_token_ids"
      ],
      "type": "object"
    },
    "Tolerances": {
      "additionalProperties": false,
      "description": "What `gemma-run check` requires; the recipe's file gives the reasons.",
      "properties": {
        "max_logit_error": {
          "default": 1.0,
          "exclusiveMinimum": 0,
          "maximum": 10,
          "type": "number"
        },
        "min_agreement": {
          "default": 0.0,
          "maximum": 1,
          "minimum": 0,
          "type": "number"
        },
        "min_acceptance_ratio": {
          "default": 0.5,
          "maximum": 1,
          "minimum": 0,
          "type": "number"
        }
      },
      "type": "object"
    }
  },
  "additionalProperties": false,
  "description": "manifest.json of a gemma-export bundle, format 1.1",
  "properties": {
    "format_version": {
      "anyOf": [
        {
          "const": 1,
          "type": "integer"
        },
        {
          "pattern": "^1\\.([1-9][0-9]{0,3})$",
          "type": "string"
        }
      ]
    },
    "name": {
      "maxLength": 200,
      "minLength": 1,
      "type": "string"
    },
    "device": {
      "maxLength": 60,
      "minLength": 1,
      "type": "string"
    },
    "made_by": {
      "additionalProperties": {
        "maxLength": 1000,
        "type": "string"
      },
      "maxProperties": 200,
      "propertyNames": {
        "maxLength": 1000
      },
      "type": "object"
    },
    "model": {
      "$ref": "#/$defs/ModelEntry"
    },
    "tokens": {
      "$ref": "#/$defs/TokenEntry"
    },
    "draft_length": {
      "maximum": 63,
      "minimum": 0,
      "type": "integer"
    },
    "runtimes": {
      "additionalProperties": {
        "$ref": "#/$defs/RuntimeEntry"
      },
      "minProperties": 1,
      "propertyNames": {
        "enum": [
          "litert",
          "onnx",
          "executorch"
        ]
      },
      "type": "object"
    },
    "reference": {
      "pattern": "^(?!(?:.*/)?\\.{0,2}(?:/|$))[^\\\\\\x00-\\x1f\\x7f]{1,1000}$",
      "type": "string"
    },
    "sources": {
      "additionalProperties": {
        "maxLength": 1000,
        "type": "string"
      },
      "default": {},
      "maxProperties": 200,
      "propertyNames": {
        "maxLength": 1000
      },
      "type": "object"
    },
    "files": {
      "additionalProperties": false,
      "patternProperties": {
        "^(?!(?:.*/)?\\.{0,2}(?:/|$))[^\\\\\\x00-\\x1f\\x7f]{1,1000}$": {
          "$ref": "#/$defs/FileEntry"
        }
      },
      "type": "object"
    }
  },
  "required": [
    "format_version",
    "name",
    "device",
    "made_by",
    "model",
    "tokens",
    "draft_length",
    "runtimes",
    "reference",
    "files"
  ],
  "type": "object"
};
