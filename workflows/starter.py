"""The configuration that `lucency init` writes: the keys a first audit needs, with the reason for each."""

import json

_TEMPLATE = """\
# One audit. Relative paths are taken from this file's folder.
# Every key, with its default: docs/reference/configuration.md. Check with: lucency plan audit.yaml

run: run                          # where the results go: a folder, or an object-store URL

archive:
  location: {archive}
                                  # a folder, .zip, .tar, .tar.gz, or object-store URL; read in place
  frames: middle                  # of multi-frame files: all, middle, or a number n for every n-th
  # labels:                       # needed only for what is said a true class
  #   file: labels.csv            # columns `image` and `label`; several labels joined by |
  # allowed_rejected: 0.05        # more rejected images than this share end with exit code 3

model:
  source: {source}
                                  # torchvision:NAME, python:module.factory, mlflow:models:/NAME@ALIAS
                                  # or export:FILE.pt2; for methods that need answers alone: torchscript:FILE.pt,
                                  # onnx:FILE.onnx, https://HOST/v2/models/NAME
  weights: {weights}
                                  # a state dict: file or URL
  # classes: classes.txt          # one name a line
  layer: auto                     # the last spatial layer; or a name, such as layer4
  task: one-label                 # or multi-label

explain:
  methods: [grad-cam, s-grad-cam] # each is one stored map
  targets: predicted              # predicted, labelled, all, or a list of class names

# engine:
#   address: null                 # a Ray cluster to join; without one, Ray starts on this machine
#   batch: 32

# mlflow:
#   uri: null                     # a server; without one, sqlite in .lucency/
"""


def starter(*, archive: str, source: str, weights: str) -> str:
    """The file's text. A JSON string is a YAML string, whatever a path holds."""
    return _TEMPLATE.format(archive=json.dumps(archive), source=json.dumps(source), weights=json.dumps(weights))
