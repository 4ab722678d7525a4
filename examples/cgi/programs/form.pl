#!/usr/bin/perl
# A form by GET or POST, whose fields come back.
use strict;
use warnings;

my $most = 65536;
my $query = $ENV{QUERY_STRING} // '';
if ($ENV{REQUEST_METHOD} eq 'POST') {
    my $length = $ENV{CONTENT_LENGTH} // 0;
    if ($length > $most) {
        print "Status: 413 Content Too Large\nContent-Type: text/plain\n\nAt most $most bytes.\n";
        exit;
    }
    $query = '';
    while (length($query) < $length) {
        read(STDIN, $query, $length - length($query), length($query)) or last;
    }
}

my %field;
for my $pair (split /[&;]/, $query) {
    my ($key, $value) = split /=/, $pair, 2;
    for ($key, $value) {
        $_ //= '';
        tr/+/ /;
        s/%([0-9A-Fa-f]{2})/chr(hex($1))/eg;
    }
    $field{$key} //= $value;
}

my %entity = ('&' => '&amp;', '<' => '&lt;', '>' => '&gt;', '"' => '&quot;');
sub escaped { my ($text) = @_; $text =~ s/([&<>"])/$entity{$1}/g; return $text }

my $said = '';
if (%field) {
    my ($name, $message) = map { escaped($field{$_} // '') } qw(name message);
    $said = "<p>$ENV{REQUEST_METHOD} said:</p><output>$name: $message</output>";
}
print <<"END";
Content-Type: text/html; charset=utf-8

<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A form</title></head><body><h1>A form</h1>
$said
<form method="post" accept-charset="utf-8"><label>Name <input name="name"></label>
<label>Message <textarea name="message"></textarea></label>
<button>Send by POST</button> <button formmethod="get">Send by GET</button></form>
<p><a href="./">Back</a></p></body></html>
END
