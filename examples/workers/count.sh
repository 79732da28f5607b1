#!/bin/sh
# A jobgate worker in POSIX shell: counts the bytes and words of a line. It reads a line and
# prints a line, and has never heard of jobgate: protocol = "lines".
LC_ALL=C
export LC_ALL
set -f # a * in a line is a word, not the files of this folder
blanks=" $(printf '\t')"
while IFS= read -r line; do
    IFS=$blanks
    # shellcheck disable=SC2086 # splitting it is the point
    set -- $line
    printf '{"bytes":%d,"words":%d}\n' "${#line}" "$#"
done
