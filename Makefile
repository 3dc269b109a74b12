# Each target installs what it needs once, into .venv, and may be repeated.
# Tests start hundreds of processes: without its bytecode each would compile the sources anew.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed
QUICK := runs/quickstart

.PHONY: help quickstart test test-fast lock build fuzz gpu-kernels lint bench measured small benchmark fonts slurm slurm-test browser \
	kill-loop clean
help:
	@echo "make quickstart  identity set, training on two ranks, evaluation, export, report (minutes)"
	@echo "make test        the test suite        make lint   ruff and mypy"
	@echo "make test-fast   the tier of unit tests, in a minute"
	@echo "make build       sdist and wheel in dist/, tried in an environment of their own"
	@echo "make lock        requirements.lock from the versions in .venv; after make clean with an empty one, the newest"
	@echo "make fuzz        20,000 changed inputs over every reader: no traceback, no hang, no memory without end"
	@echo "make gpu-kernels  the head's kernels compiled for A100, H100 and B200, without a GPU: no spills, memory fits"
	@echo "make bench       measures the claims once more and appends lines to benchmarks/results.jsonl"
	@echo "make measured    docs/measured.md and the README's lines from the stored results"
	@echo "make small       a table of small models: pruned, distilled, int8, each beside the quickstart's network"
	@echo "make benchmark   what losses, sampling and row types do to accuracy, on 20,000 identities; after make fonts"
	@echo "make fonts       Debian's CJK and Korean fonts, for the glyph set of 88,000 identities (root)"
	@echo "make slurm       Debian's Slurm, for make slurm-test: jobs on a real cluster of two nodes on this machine (root)"
	@echo "make browser     Debian's headless Chromium, in which tests open the pages that reports are (root)"
	@echo "make kill-loop   50 random kills of ranks and launcher: every run must end with the same weights"
	@echo "make clean       remove .venv; data/ and runs/ stay"

$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --progress-bar off --constraint requirements.lock --editable '.[dev]'
	@touch $@

# A second call goes on where the first was stopped; a finished run is left alone.
quickstart: $(QUICK)/report.html
	@echo "report: $(QUICK)/report.html   summary: $(QUICK)/summary.json   model: $(QUICK)/model.onnx"
	@echo "serve it: $(BIN)/headcount serve $(QUICK) --no-align --no-flip"
	@echo "once more from the start: rm -r $(QUICK) data/quickstart && make quickstart"

# The fonts that matplotlib brings and no others, so that every machine makes the same set.
data/quickstart/train/manifest.json: | $(INSTALLED)
	$(BIN)/headcount prep glyphs data/quickstart --image-size 64 --views 16 \
		--fonts "$$($(BIN)/python -c 'import matplotlib; print(matplotlib.get_data_path())')"

$(QUICK)/report.html: data/quickstart/train/manifest.json
	$(BIN)/headcount launch local configs/quickstart.yaml $(if $(wildcard $(QUICK)/config.yaml),--resume)

# A file at a time in each of five processes, which keep two cores busy: many tests wait. tests/conftest.py orders them.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)
	$(PYTEST) -n 5

# Unit tests wait for nothing, and each process more imports torch once more.
test-fast: $(INSTALLED)
	$(PYTEST) -n 2 -m unit

lock: $(INSTALLED)
	{ echo "# Versions that the tests pass with, written by make lock; what make and the images install."; \
		$(BIN)/pip freeze --exclude-editable; } > requirements.new
	mv requirements.new requirements.lock
	@touch $(INSTALLED)

# The wheel is made from the sdist. It is tried apart from the sources, with the libraries of .venv.
build: $(INSTALLED)
	rm -rf dist build
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python .ci/try_wheel.py dist

fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz --inputs 20000

# Triton keeps what it compiled in ~/.triton, so that a second call takes seconds.
gpu-kernels: $(INSTALLED)
	$(BIN)/python -m tests.head.compiled

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Each call is one more run: lines of code that has changed since are to be deleted by hand.
bench: $(INSTALLED) $(QUICK)/report.html
	@for script in $(addprefix benchmarks/,head.py data.py align.py prep.py train.py plan.py evaluate.py export.py serve.py); do \
		echo "$$script" >&2; $(BIN)/python $$script | tee -a benchmarks/results.jsonl || exit 1; done

measured: $(INSTALLED)
	$(BIN)/python -m benchmarks.measured

small: $(INSTALLED) $(QUICK)/report.html
	$(BIN)/python benchmarks/small.py --case models
	@cat runs/small/table.md

# Targets that install wait for one another.
APT_INSTALL := apt-get install --yes --no-install-recommends -o DPkg::Lock::Timeout=600

# Free CJK and Korean typefaces of Debian and Ubuntu.
FONTS := alee arphic-bkai00mp arphic-bsmi00lp arphic-gbsn00lp arphic-gkai00mp arphic-ukai arphic-uming \
	babelstone-han baekmuk cns11643-kai cns11643-sung cwtex-fs cwtex-heib cwtex-kai cwtex-ming cwtex-yen dejima-mincho \
	droid-fallback hanazono ipaexfont ipafont ipamj-mincho kiloji komatuna konatu kouzan-mouhitsu \
	lexi-gulim lexi-saebom lxgw-wenkai migmix mona monapo motoya-l-cedar motoya-l-maruberi mplus nanum nanum-eco \
	nanum-extra naver-d2coding noto-cjk oradano-mincho-gsrr sawarabi-gothic sawarabi-mincho seto \
	smiley-sans takao umeplus unfonts-core unfonts-extra unifont vlgothic woowa-bm wqy-microhei wqy-zenhei
fonts:
	$(APT_INSTALL) $(addprefix fonts-,$(FONTS))

slurm:
	command -v slurmctld >/dev/null || $(APT_INSTALL) slurmctld slurmd slurm-client munge

# The shell without windows is the smallest of Debian's; any other that is there will do.
browser:
	@command -v chromium-headless-shell || command -v chromium || command -v google-chrome || \
		$(APT_INSTALL) chromium-headless-shell fonts-dejavu-core

benchmark: data/benchmark/train/manifest.json
	$(BIN)/python benchmarks/accuracy.py

# Korean, Chinese and Japanese fonts in which at least 25,000 characters have four looks or more.
BENCHMARK_FONTS := nanum unfonts-core unfonts-extra baekmuk alee lexi woowa-bm arphic arphic-bkai00mp arphic-bsmi00lp \
	cwtex wqy lxgw-wenkai kiloji umeplus vlgothic takao-gothic takao-mincho
data/benchmark/train/manifest.json: | $(INSTALLED)
	$(BIN)/headcount prep glyphs data/benchmark --image-size 32 --views 12 --min-fonts 4 --identities 20000 \
		--heldout-identities 5000 $(addprefix --fonts /usr/share/fonts/truetype/,$(BENCHMARK_FONTS))

slurm-test: $(INSTALLED)
	$(BIN)/python -m pytest tests/slurm -rs

kill-loop: $(INSTALLED)
	$(BIN)/python -m tests.train.kill_loop --kills 50

clean:
	rm -rf .venv
