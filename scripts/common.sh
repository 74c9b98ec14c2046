# Sourced by the scripts beside it: which Python to use, virtual environments, installing diced.

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

is_new_enough() {
    [ "$("$1" -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)" = True ]
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_new_enough "$PYTHON" ||
            fail "diced needs Python 3.11 or newer, and PYTHON=$PYTHON is not" \
                "($("$PYTHON" -V 2>/dev/null | head -n 1))"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "diced needs Python 3.11 or newer; python3 is" \
        "$(python3 -V 2>/dev/null || echo 'missing'). Name another with PYTHON=/path/to/python"
}

# make_venv DIR: create the virtual environment unless it is there (pip comes last into a new one).
make_venv() {
    [ -x "$1/bin/python" ] && [ -x "$1/bin/pip" ] && return
    base=$(find_python) || exit 1
    echo "making $1 with $("$base" --version)"
    # ensurepip is what Debian's python3 lacks without python3-venv.
    "$base" -c 'import ensurepip' 2>/dev/null ||
        fail "$base cannot make virtual environments; install its venv package (python3-venv)"
    "$base" -m venv "$1" || fail "could not make a virtual environment in $1"
}

# What the installed package depends on, as one checksum.
fingerprint() {
    (
        cd "$root"
        find src setup.py pyproject.toml MANIFEST.in README.md -type f \
            ! -name '*.so' ! -name '*.c' ! -name '*.py[co]' ! -path '*.egg-info/*' |
            LC_ALL=C sort | while IFS= read -r name; do
            echo "$name"
            cksum <"$name"
        done | cksum
    )
}

# install VENV EXTRA STAMP [pip options]: install the checkout, unless this very source was before.
# The build happens in a copy: nothing stale in the checkout's build/ can get into the wheel, and
# the checkout stays as it was.
install() {
    venv=$1 extra=$2 stamp=$3
    shift 3
    now="$extra $(fingerprint)"
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$now" ] && return
    echo "installing diced into $venv"
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    trap 'exit 130' INT TERM
    (
        cd "$root"
        tar -cf - --exclude='*.so' --exclude='*.c' --exclude='__pycache__' --exclude='*.egg-info' \
            LICENSE README.md MANIFEST.in pyproject.toml setup.py src
    ) | (cd "$copy" && tar -xf -) || fail "could not copy the source to $copy"
    rm -f "$stamp"
    (cd "$copy" && "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@" ".$extra") ||
        fail "installing diced failed; the lines above say why"
    rm -rf "$copy"
    echo "$now" >"$stamp"
}
