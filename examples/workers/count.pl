#!/usr/bin/env perl
# A jobgate worker in plain Perl: counts the bytes and words of a text. It speaks frames on stdin
# and stdout, with what comes with Perl.
#
# A frame: u32 length of all that follows, u8 version, u8 type, u16 flags, u32 id,
# u32 length of the meta, then the meta (JSON) and the body. Numbers are big-endian.
use strict;
use warnings;
use JSON::PP qw(encode_json);

use constant { HELLO => 1, COMMAND => 3, REPLY => 4, FAIL => 5, PING => 10, PONG => 11,
               DRAIN => 12 };

# Nothing but frames may reach the real stdout: what is printed goes to stderr, which is logged.
open(my $gate, '>&', \*STDOUT) or die "dup: $!";
open(STDOUT, '>&', \*STDERR) or die "dup: $!";
binmode($_) for $gate, \*STDIN;
$gate->autoflush(1);

sub count_words {
    my ($body) = @_;
    my $text = $body;
    utf8::decode($text) or die { title => 'the body is not UTF-8', status => 422 };
    my $words = () = $body =~ /[^ \t\n\x0b\f\r]+/g;
    return encode_json({ bytes => length $body, words => $words });
}

sub receive {
    my ($count) = @_;
    my $data = '';
    while (length $data < $count) {
        my $got = read(STDIN, $data, $count - length $data, length $data);
        exit 0 unless $got;    # the gate is gone
    }
    return $data;
}

sub answer {
    my ($type, $id, $meta, $body) = @_;
    $meta = $meta ? encode_json($meta) : '';
    $body //= '';
    my $length = 12 + length($meta) + length($body);
    print {$gate} pack('NCCnNN', $length, 1, $type, 0, $id, length $meta), $meta, $body or exit 1;
}

answer(HELLO, 0, { protocol => 1, ordered => JSON::PP::true });
while (1) {
    my ($length, undef, $type, undef, $id, $meta_length) = unpack('NCCnNN', receive(16));
    my $meta = receive($meta_length);
    my $body = receive($length - 12 - $meta_length);
    if ($type == COMMAND) {
        my $reply = eval { count_words($body) };
        if (defined $reply) {
            answer(REPLY, $id, { content_type => 'application/json' }, $reply);
        } elsif (ref $@) {
            answer(FAIL, $id, $@);
        } else {
            warn $@;
            answer(FAIL, $id, { title => "$@" });
        }
    } elsif ($type == PING) {
        answer(PONG, $id);
    } elsif ($type == DRAIN) {
        exit 0;
    }    # other types (WELCOME, CANCEL) ask nothing of a worker this simple
}
