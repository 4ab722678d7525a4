#!/usr/bin/perl
# Numbered lines, each sent when it is made.
use strict;
use warnings;

$| = 1;
print "Content-Type: text/plain; charset=utf-8\nCache-Control: no-store\n\n";
for my $number (1 .. 10) {
    select(undef, undef, undef, 0.3) if $number > 1;
    print "line $number of 10\n";
}
